"""`python -m app.skill`: skills on a base that stays as it is, their mixture,
and what is refused.
"""

import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor

from app import skill
from app.config.saved import read_config
from app.model.assemble import build_model
from app.model.skills import SkillsInit, base_of, fingerprint
from app.model.transformer import Transformer
from app.registry import UserError
from app.runs.library import load_skills, path_of, read_skill, write_skill
from app.runs.read import located, read_run
from app.runs.stages import add_words, compose_words, keep
from app.training.checkpoints import read_checkpoint
from tests.conftest import ROOT
from tests.support.interrupted import train as train_alone
from tests.support.interrupted import train_two
from tests.support.shell import SMALL, environment, write_text

BASE = Path("runs/base")
TEXT = ["data=text", "data.path=t.txt", "data.seq_len=32", "data.val_rows=4"]
SHORT = [
    *TEXT,
    *["callbacks=off", "data.batch_size=4", "trainer.max_steps=4", "trainer.val_every=4"],
]


def train(words: Sequence[str]) -> None:
    """The real train.py in this process."""
    GlobalHydra.instance().clear()
    before = sys.argv
    sys.argv = [str(ROOT / "train.py"), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before


def add(name: str, *more: str) -> None:
    words = add_words(BASE, name, [*SHORT, *more])
    train(words)
    keep(BASE, name, words)


def state(run: str) -> dict[str, Tensor]:
    return read_checkpoint(located(Path("runs") / run)[1])["state_dict"]


def hidden(model: Transformer) -> Tensor:
    tokens = torch.arange(48).view(2, 24)
    return model.eval().hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), None)[0]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a dense run, three skills on it, and a mixture of two of them."""
    folder = tmp_path_factory.mktemp("library")
    write_text(folder)
    with chdir(folder):
        train([*SMALL.split(), "run=base", "experts=dense", "balance=none"])
        for name, lr in (("one", 0.01), ("two", 0.02), ("three", 0.03)):
            add(name, f"optimizer.lr={lr}")
        train(
            compose_words(
                BASE, ["one", "two"], None, [*SHORT, "run=pair", "trainer.checkpoint_every=2"]
            )
        )
        yield folder


def started(config: dict[str, Any], **start: Any) -> Transformer:
    """The model of a run as it is before its first step."""
    torch.manual_seed(0)
    model = build_model(config, 257)
    load_skills(
        model,
        SkillsInit(**{"base": "runs/base", "files": None, "mixture": None, "learn": None} | start),
    )
    return model


def test_only_the_skill_learns_in_the_first_stage_and_only_the_mixture_in_the_second(
    library: Path,
) -> None:
    base = base_of(state("base"))
    for run in ("base-one", "base-two", "pair"):
        assert all(
            torch.equal(weights, base[name]) for name, weights in base_of(state(run)).items()
        ), run
        assert fingerprint(state(run)) == fingerprint(state("base"))
    assert fingerprint(state("base")) != fingerprint(
        {n: w + 1e-3 for n, w in state("base").items()}
    )
    alone = state("base-two")
    pair = state("pair")
    factors = [name for name in pair if ".skills_" in name]
    assert factors and all(torch.equal(pair[name][1], alone[name][0]) for name in factors)
    assert all(alone[name].any() for name in factors), "B has left 0"
    before = started(read_config(Path("runs/pair/config.yaml")))
    routers = {name: weights for name, weights in before.state_dict().items() if ".router." in name}
    assert routers and not any(
        torch.equal(weights, pair[f"model.{name}"]) for name, weights in routers.items()
    )


def test_a_mixture_of_more_skills_starts_as_the_one_that_it_grows_from(library: Path) -> None:
    config = read_config(Path("runs/pair/config.yaml"))
    config["experts"]["skills"] = ["three", "two", "one"]
    files = {name: str(path_of(BASE, name)) for name in ("one", "two", "three")}
    wider = started(config, files=files, mixture="runs/pair")
    torch.testing.assert_close(
        hidden(wider), hidden(read_run(Path("runs/pair")).model), atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(hidden(started(config, files=files)), hidden(wider), atol=1e-4), (
        "others differ"
    )


def test_a_skill_is_also_the_run_that_has_learned_it_and_can_learn_on(library: Path) -> None:
    train(
        [
            *add_words(BASE, "further", SHORT),
            "init.files={further: runs/base-two}",
            "init.learn=true",
        ]
    )
    before = state("base-two")
    after = state("base-further")
    moved = [name for name, weights in after.items() if not torch.equal(weights, before[name])]
    factors = [name for name in after if ".skills_" in name]
    assert moved and {*moved} == {*factors}
    begun = started(
        read_config(Path("runs/base-further/config.yaml")),
        files={"further": "runs/base-two"},
        learn=True,
    )
    assert all(
        torch.equal(begun.state_dict()[name.removeprefix("model.")], before[name])
        for name in factors
    )


def test_constant_shares_merge_into_the_weights(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skill.main(["merge", "runs/base", "run=merged", "one=0.75", "two=-0.5"])
    assert capsys.readouterr().out.strip() == "runs/merged"
    config = read_config(Path("runs/pair/config.yaml"))
    mixed = started(config, files={name: str(path_of(BASE, name)) for name in ("one", "two")})
    last = mixed.routers()[0].score.net[-1]
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor([0.75, -0.5]))
    merged = read_run(Path("runs/merged")).model
    torch.testing.assert_close(hidden(merged), hidden(mixed), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hidden(merged), hidden(read_run(BASE).model), atol=1e-3)


def test_a_stage_goes_on_to_the_same_bits(library: Path) -> None:
    run = Path("runs/pair")
    whole = state("pair")
    for path in [*(run / "checkpoints").glob("step_4.*"), run / "summary.json"]:
        path.unlink()
    train(
        compose_words(
            BASE, ["one", "two"], None, [*SHORT, "run=pair", "trainer.checkpoint_every=2"]
        )
    )
    assert all(torch.equal(weights, whole[name]) for name, weights in state("pair").items())


@pytest.mark.nightly
def test_a_skill_is_added_shown_and_removed_from_the_command_line(library: Path) -> None:
    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        there = environment() | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        line = [sys.executable, "-m", "app.skill", *words]
        return subprocess.run(
            line, cwd=library, env=there, capture_output=True, text=True, timeout=250
        )

    done = typed("add", "runs/base", "name=typed", *SHORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/base/skills/typed.safetensors"
    again = typed("add", "runs/base", "name=typed", *SHORT)
    assert (
        again.returncode == 2
        and ("has this skill; python -m app.skill remove runs/base typed") in again.stderr
    )
    shown = typed("list", "runs/base").stdout
    assert all(name in shown for name in ("one", "two", "three", "typed")) and "8" in shown
    assert typed("remove", "runs/base", "typed").returncode == 0
    assert not (library / "runs/base/skills/typed.safetensors").exists()


def damaged(name: str, **about: str) -> Path:
    """A copy of skill `one` with another header."""
    path = path_of(BASE, "one").with_name(f"{name}.safetensors")
    one = read_skill(path_of(BASE, "one"))
    write_skill(path, one._replace(about=one.about | about))
    return path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["compose", "runs/base", "--skills", "one,foreign"],
            "foreign.safetensors: was learned on another base (0123",
        ),
        (["compose", "runs/base", "--skills", "one,cut"], "cut.safetensors: is damaged ("),
        (
            ["compose", "runs/base", "--skills", "one,loud"],
            "experts.scale=16.0: loud was learned with 2.0",
        ),
        (
            ["compose", "runs/base", "--skills", "one,tow"],
            "runs/base: skill tow: unknown; did you mean 'two'?",
        ),
        (["compose", "runs/base", "experts.rank=4"], "experts.rank=4: one was learned with 8"),
        (
            ["compose", "runs/base", "--mixture", "runs/pair", "--skills", "one"],
            "lacks two, which the mixture before",
        ),
        (
            ["compose", "runs/base", "--mixture", "runs/pair", "router/weigh=softmax"],
            "only with router/weigh=identity",
        ),
        (
            ["compose", "runs/base", "init.files={one: runs/pair,two: runs/base-two}"],
            "runs/pair: has learned 2 skills",
        ),
        (
            ["add", "runs/base", "name=new", "init.learn=true"],
            "init.learn=True: needs init.files",
        ),
        (
            ["compose", "runs/pair"],
            "runs/pair: has experts=lora_skills; skills lie on a dense model",
        ),
        (
            ["add", "runs/base", "name=new", "tokenizer=bpe"],
            "cuts text by another tokenizer; set tokenizer=",
        ),
        (
            ["add", "runs/base", "name=new", "model.dim=64"],
            "init.base: is no dense model of these sizes: ",
        ),
        (["add", "runs/base", "name=a.b"], "name=a.b: must be letters, digits and _"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    line: str,
) -> None:
    damaged("foreign", base="0123456789abcdef" * 2)
    damaged("loud", scale="2.0")
    cut = damaged("cut")
    cut.write_bytes(cut.read_bytes()[:-100])
    monkeypatch.setattr(skill, "_train", train)
    runs = sorted(Path("runs").iterdir())
    if "--skills" not in words:
        words = [*words, *(["--skills", "one,two"] if words[0] == "compose" else [])]
    try:
        with pytest.raises((UserError, SystemExit)) as caught:
            skill.main([*words, *SHORT])
    finally:
        for name in ("foreign", "loud", "cut"):
            path_of(BASE, name).unlink()
    errors = [told for told in capfd.readouterr().err.splitlines() if told.startswith("error: ")]
    said = str(caught.value) if isinstance(caught.value, UserError) else "\n".join(errors)
    assert line in said and "\n" not in said
    assert sorted(Path("runs").iterdir()) == runs


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("level", ["parameter", "logits"])
def test_two_processes_learn_the_mixture_that_one_learns(
    library: Path, strategy: str, level: str
) -> None:
    own = [*SHORT, "data.micro_batch_size=2", f"experts.level={level}"]
    one, two = (
        compose_words(BASE, ["one", "two"], None, [*own, f"run={strategy}-{level}-{n}"])
        for n in (1, 2)
    )
    assert train_alone(library, one) == 0
    assert train_two(library, two, how=(f"trainer={strategy}", "trainer.accelerator=cpu")) == [0, 0]
    states = [state(f"{strategy}-{level}-{n}") for n in (1, 2)]
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-4)
    assert fingerprint(states[1]) == fingerprint(state("base"))
