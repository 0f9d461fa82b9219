"""`python -m app.race` as a user types it:
a fresh process, a folder with a small text, a race of their own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config.errors import MISTAKES, one_line
from app.race import main
from tests.conftest import ROOT
from tests.support.shell import SMALL, environment, write_text

pytestmark = pytest.mark.nightly

COMMON = [
    *SMALL.replace("tokenizer=bytes", "tokenizer.vocab_size=280").split(),
    "model.dim=24",
    "model.num_layers=1",
]
RACE: dict[str, Any] = {
    "claim": "a wider layout is better",
    "before": {"base": [*COMMON, "experts=dense", "balance=none"]},
    "common": COMMON,
    "contestants": {
        "top2": ["experts=coarse"],
        "typo": ["router=topkk"],
        "infinite": ["experts=coarse", "model.init_std=1e15"],
        "skilled": [
            "experts=lora_skills",
            "init=skills",
            "init.base=@base",
            "optimizer=adamw",
            "optimizer.lr=0.0",
        ],
    },
    "baseline": "top2",
    "match": "active_flops",
    "unmatched": ["skilled"],
    "sizes": ["xs"],
    "seeds": [0],
    "noise_seeds": [],
    "tuning_seed": 9,
    "lr": [0.01, 0.02, 0.04],
    "lengths": [],
    "measure": "bpb",
    "margin": 0.01,
}


def write_race(folder: Path, **changes: Any) -> None:
    write_text(folder)
    (folder / "conf" / "race").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "race" / "mine.yaml").write_text(yaml.safe_dump(RACE | changes))


def words(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "app.race",
        "race=mine",
        f"hydra.searchpath=[file://{folder}/conf]",
        *more,
    ]


def race(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    there = environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        words(folder, *more), cwd=folder, env=there, capture_output=True, text=True, timeout=800
    )


@pytest.fixture(scope="module")
def raced(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("race")
    write_race(folder)
    return folder, race(folder, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


Raced = tuple[Path, subprocess.CompletedProcess[str]]


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    result = json.loads((folder / "results" / "mine" / "result.json").read_text())
    return {row["contestant"]: row for row in result["xs"]["rows"]}


def without_memory(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "peak_memory_bytes"}
        for line in lines
    ]


def test_a_race_ends_with_a_row_for_everybody_also_for_those_who_failed(raced: Raced) -> None:
    folder, done = raced
    assert done.returncode == 0, done.stderr
    found = rows(folder)
    assert found["top2"]["seeds"] == [0] and found["top2"]["means"]["bpb"]["mean"] > 0
    base = [path for path in (folder / "runs").glob("member-*") if (path / "summary.json").exists()]
    assert len(base) == 1, "what others start from is kept"
    alone = json.loads((base[0] / "summary.json").read_text())["val_bpb"]
    assert found["skilled"]["means"]["bpb"]["mean"] == pytest.approx(alone), (
        "at the rate 0 a skill stays the 0 that it begins as"
    )
    assert "did you mean 'topk'" in found["typo"]["failed"][0]
    assert "not finite" in found["infinite"]["failed"][0]
    assert json.loads((folder / "results/mine/result.json").read_text())["xs"]["missing"] == 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("launcher", "package"), [("submitit_local", "submitit"), ("ray", "ray")])
def test_the_launchers_for_other_machines_give_the_same_race(
    raced: Raced, tmp_path: Path, launcher: str, package: str
) -> None:
    pytest.importorskip(package)
    write_race(tmp_path)
    done = race(tmp_path, f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    found, known = (
        {name: row.get("bpb") for name, row in rows(folder).items()}
        for folder in (tmp_path, raced[0])
    )
    assert found == known


def test_it_writes_down_what_it_is_before_it_runs_and_is_no_other_one_afterwards(
    raced: Raced,
) -> None:
    folder, _ = raced
    told = json.loads((folder / "results" / "mine" / "race.json").read_text())
    assert told["race"] == RACE
    changed = race(folder, "report=true", "race.margin=0.5")
    assert changed.returncode == 2 and changed.stderr.count("\n") == 1
    assert f"was begun ({told['fingerprint']}, now" in changed.stderr


def test_what_has_ended_is_not_run_again_and_what_runs_again_is_the_same_bit_for_bit(
    raced: Raced,
) -> None:
    folder, _ = raced
    lines = folder / "results" / "mine" / "members.jsonl"
    desk = folder / ".cache" / "race"
    before = [json.loads(line) for line in lines.read_text().splitlines()]
    written = {path: path.stat().st_mtime_ns for path in desk.glob("*.log")}
    again = before[-1]["key"]
    assert not (folder / "runs" / f"member-{again}").exists(), "its record is all that is kept"
    (desk / f"{again}.json").unlink()
    lines.unlink()
    assert race(folder).returncode == 0
    after = [json.loads(line) for line in lines.read_text().splitlines()]
    assert "curve" in after[-1] and without_memory(after) == without_memory(before)
    assert {p.stem for p in desk.glob("*.log") if p.stat().st_mtime_ns != written[p]} == {again}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["race=mine", "sizes=[xl]"], "sizes=['xl']: unknown; did you mean 'xs'?"),
        (["race=deepsekmoe"], "race=deepsekmoe: unknown; did you mean 'deepseekmoe'?"),
        (["race=mine", "race.seeds=[]"], "race.seeds=[]: must name each once, and at least one"),
        (["race=mine", "sedes=[1]"], "sedes: unknown"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    write_race(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MISTAKES) as caught:
        main([f"hydra.searchpath=[file://{tmp_path}/conf]", *words])
    assert one_line(caught.value).startswith(said) and not (tmp_path / "results").exists()


def test_a_killed_race_goes_on_and_gives_the_same_table(raced: Raced, tmp_path: Path) -> None:
    write_race(tmp_path)
    there = environment() | {"PYTHONPATH": str(ROOT)}
    for _ in range(4):
        started = subprocess.Popen(words(tmp_path), cwd=tmp_path, env=there, start_new_session=True)
        time.sleep(15)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert race(tmp_path).returncode == 0
    files = [folder / "results" / "mine" / "members.jsonl" for folder in (raced[0], tmp_path)]
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert without_memory(lines[0]) == without_memory(lines[1])


def trials(folder: Path) -> list[int]:
    """The processes of `train.py` that run in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            here = process.name.isdigit() and (process / "cwd").readlink() == folder
            if here and b"train.py" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        # it has ended meanwhile, or is not ours
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_a_killed_study_leaves_no_trial_running(tmp_path: Path, launcher: list[str]) -> None:
    """Only the process of the study is killed, by a signal that it cannot handle."""
    endless = [
        *COMMON,
        "trainer.max_steps=1000000",
        "trainer.checkpoint_every=1000000",
        "trainer.val_every=1000000",
    ]
    write_race(
        tmp_path, common=endless, contestants={"top2": ["experts=coarse"]}, before={}, unmatched=[]
    )
    there = environment() | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        words(tmp_path, *launcher), cwd=tmp_path, env=there, stderr=subprocess.DEVNULL
    )
    try:
        number = 2 if launcher else 1
        assert wait_for(lambda: len(trials(tmp_path)) == number, 120)
        assert wait_for(lambda: len(list(tmp_path.glob("runs/*/config.yaml"))) == number, 120)
        started.kill()
        started.wait()
        assert wait_for(lambda: not trials(tmp_path), 30)
        assert not wait_for(lambda: bool(trials(tmp_path)), 10), (
            "a worker of a pool does not begin with the next one"
        )
    finally:
        started.kill()
        for process in trials(tmp_path):
            os.kill(process, signal.SIGKILL)
