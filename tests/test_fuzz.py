"""Random damage to folders from somebody else: every command ends well or in one line, and nothing
is written outside.

A dozen cases run in the gate, and hundreds in the slow tests.
"""

import json
import os
import random
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from app import evaluate, export, generate, race, report, skill
from app.hub import remote
from app.hub.read import import_run
from app.runs.gather import main as gather
from app.runs.stages import add_words, keep
from tests.conftest import ROOT
from tests.support.damage import copy_of, damage, files_of, seal, survived
from tests.support.hub_models import CASES, OVERRIDES, add_tokenizer, config_of, model_of, written
from tests.support.shell import SMALL, write_text
from tests.support.studies import VALUES, WHOLE

pytestmark = pytest.mark.nightly

FEW = range(12)
MANY = range(12, 160)
HUB = range(12, 212)
RUN = [
    *SMALL.replace("tokenizer=bytes", "tokenizer=bpe tokenizer.vocab_size=300").split(),
    "logger=[tensorboard,csv]",
    "router=mixtral",
    "experts=coarse",
    "experts.num_experts=4",
]


def cases(few: range, many: range) -> list[Any]:
    return [*few, *(pytest.param(number, marks=pytest.mark.nightly) for number in many)]


def train(*overrides: str) -> None:
    """The real train.py in this process."""
    GlobalHydra.instance().clear()
    before = sys.argv
    sys.argv = [str(ROOT / "train.py"), *overrides]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with whole runs: of one file a checkpoint, of parts,
    and a dense one with a skill.
    """
    folder = tmp_path_factory.mktemp("fuzz")
    before = Path.cwd()
    os.chdir(folder)
    write_text(folder)
    (folder / "originals").mkdir()
    dense = ["experts=dense", "balance=none"]
    for name, more in (("whole", []), ("parts", ["trainer.checkpoint_format=sharded"])):
        train(*RUN, *more, f"run={name}")
    train(*RUN[:-3], *dense, "run=dense")
    base = Path("runs/dense")
    words = add_words(
        base,
        "one",
        [word for word in RUN[:-3] if word.startswith(("data", "trainer", "callbacks"))],
    )
    train(*words)
    keep(base, "one", words)
    for name in ("whole", "parts", "dense"):
        Path(f"runs/{name}").rename(f"originals/{name}")
    yield folder
    os.chdir(before)


@pytest.fixture
def outside(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A home directory that must stay empty: planted code would write into it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    yield
    assert not list(home.iterdir())


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "resume": lambda run: train("run=x", "resume=true", "trainer.max_steps=5"),
    "generate": lambda run: generate.main([str(run), "--prompt", "the", "--max-tokens", "3"]),
    "generate of a step": lambda run: generate.main(
        [str(run), "--prompt", "the", "--max-tokens", "3", "--checkpoint", "step_2"]
    ),
    "evaluate": lambda run: evaluate.main([str(run)]),
    "report": lambda run: report.main([str(run), "--quick", "--rows", "2"]),
    "export": lambda run: export.main([str(run), "out", "--to", "hf-remote"]),
    "gather": lambda run: gather([str(run / "checkpoints/step_4.ckpt"), "one.ckpt"]),
    "begin with it": lambda run: train(
        *RUN, "run=y", "init=run", f"init.checkpoint={run}", "trainer.max_steps=1"
    ),
}


@pytest.mark.parametrize("seed", cases(FEW, MANY))
def test_a_damaged_run_is_one_line(
    place: Path, outside: None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the process of transformers takes seconds
    monkeypatch.setattr(remote, "difference", lambda *_, **__: 0.0)
    chance = random.Random(seed)
    for name in ("runs/y", "out", "one.ckpt", "one.sha256"):
        shutil.rmtree(name, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
    run = copy_of(
        place / "originals" / chance.choice(["whole", "parts"]), place / "runs/x"
    ).relative_to(place)
    files = files_of(run)
    file = chance.choice(
        [path for path in files if path.parent == run] if chance.random() < 0.6 else files
    )
    what = damage(file, chance)
    if chance.random() < 0.5:
        seal(run)
    name = chance.choice([*COMMANDS])
    with survived(f"{name}: {what}"):
        COMMANDS[name](run)


@pytest.mark.parametrize("seed", cases(range(4), range(4, 40)))
def test_a_damaged_skill_is_one_line(place: Path, outside: None, seed: int) -> None:
    chance = random.Random(seed)
    run = copy_of(place / "originals/dense", place / "runs/x").relative_to(place)
    shutil.rmtree("runs/merged", ignore_errors=True)
    what = damage(run / "skills/one.safetensors", chance)
    for name, words in {
        "list": ["list", str(run)],
        "merge": ["merge", str(run), "run=merged", "one=0.5"],
    }.items():
        with survived(f"{name}: {what}"):
            skill.main(words)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    config = config_of(*CASES["qwen2_moe, gated"])
    written(folder / "theirs", config, model_of(config))
    add_tokenizer(folder / "theirs")
    return folder / "theirs"


@pytest.mark.parametrize("seed", cases(FEW, HUB))
def test_a_damaged_hugging_face_folder_is_one_line(
    place: Path, theirs: Path, outside: None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    monkeypatch.setattr("app.hub.read.difference", lambda *_, **__: 0.0)
    chance = random.Random(seed)
    shutil.rmtree("runs/in", ignore_errors=True)
    folder = copy_of(theirs, place / "theirs")
    what = damage(chance.choice(files_of(folder)), chance)
    with survived(what):
        import_run(str(folder), "in", OVERRIDES)


@pytest.mark.parametrize("seed", cases(range(6), range(6, 66)))
def test_a_damaged_study_is_one_line(
    place: Path, outside: None, seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its result is written from records, of which none is missing, so nothing runs."""
    chance = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    conf = shutil.copytree(ROOT / "conf", tmp_path / "conf")
    study = VALUES | {
        "contestants": {"top2": [], "fine": ["experts.top_k=1"]},
        "common": ["model=nano"],
    }
    (conf / "race/mine.yaml").write_text(json.dumps(study))
    monkeypatch.setattr("app.config.compose.CONF", conf)
    race.main(["race=mine", "report=true"])
    results = tmp_path / "results/mine"
    lines = [
        {
            "contestant": name,
            "size": "xs",
            "lr": lr,
            "seed": seed,
            "share": 1.0,
            "key": f"m{number}",
            "bpb": 2.0,
        }
        for number, (name, lr, seed) in enumerate(
            (n, r, s) for n in study["contestants"] for r in study["lr"] for s in (0, 1, 9)
        )
    ]
    (results / "members.jsonl").write_text(
        "".join(json.dumps(WHOLE | line) + "\n" for line in lines)
    )
    (results / "seconds.json").write_text(json.dumps({"seconds_per_token": {"xs": {"top2": 1.0}}}))
    desk = tmp_path / ".cache/race"
    desk.mkdir(parents=True)
    (desk / "m99.json").write_text(json.dumps(WHOLE | {"bpb": 2.0}))
    names = ["members.jsonl", "seconds.json", "race.json"]
    what = damage(chance.choice([*(results / name for name in names), desk / "m99.json"]), chance)
    with survived(what):
        race.main(["race=mine", "report=true"])
