"""Everything read from a run is undamaged and describes the chosen weights."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app import evaluate, export, generate, report, skill
from app.analysis.curves import table_of
from app.hub.card import card
from app.registry import UserError
from app.runs import folder as run_folder
from app.runs import summary
from app.runs.read import read_run, weights_of
from app.training.checkpoints import read_checkpoint
from tests.conftest import ROOT
from tests.support.mistakes import mistake

Train = Callable[..., Path]
LONG = (
    "trainer.max_steps=4",
    "trainer.checkpoint_every=2",
    "trainer.val_every=4",
    "data.val_rows=2",
)


def flip(path: Path) -> None:
    """Change one bit in the middle of the largest file of a checkpoint."""
    file = max(path.iterdir(), key=lambda each: each.stat().st_size) if path.is_dir() else path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("layout", ["file", "sharded"])
def test_a_named_checkpoint_is_verified_by_every_command(train: Train, layout: str) -> None:
    run = train(*LONG, f"trainer.checkpoint_format={layout}")
    path = run / "checkpoints/step_2.ckpt"
    read_run(run, "step_2")
    flip(path)
    chosen = ["--checkpoint", "step_2"]
    commands: list[tuple[Any, list[str]]] = [
        (generate, [str(run), "--prompt", "a", *chosen]),
        (evaluate, [str(run), *chosen]),
        (report, [str(run), "--quick", *chosen]),
        (export, [str(run), "--to", "hf-remote", *chosen]),
        (generate, [str(path), "--prompt", "a"]),
    ]
    for command, words in commands:
        with pytest.raises(UserError, match=r"step_2.ckpt: is damaged \(its checksum differs\)"):
            command.main(words)
    with pytest.raises(UserError, match="is damaged"):
        weights_of("init.checkpoint", str(path))
    assert not (run / "hf-remote").exists() and not (run / "report").exists()


def test_a_checkpoint_without_its_checksum_is_refused(train: Train) -> None:
    run = train(*LONG)
    (run / "checkpoints/step_2.sha256").unlink()
    with pytest.raises(UserError, match=r"step_2.sha256 is not there"):
        read_run(run, "step_2")


def test_exported_weights_have_a_checksum_of_their_own(train: Train) -> None:
    run = train(*LONG, "trainer.export_weights=last")
    path = run / "weights.safetensors"
    state = read_checkpoint(run / "checkpoints/step_4.ckpt")["state_dict"]
    found = weights_of("init.checkpoint", str(path))
    assert found.keys() == {name for name in state if name.startswith("model.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError,
        match=r"init\.checkpoint=.*weights.safetensors: is damaged \(its "
        r"checksum differs\)",
    ):
        weights_of("init.checkpoint", str(path))


def test_a_model_card_is_about_the_weights_that_are_exported(train: Train) -> None:
    run = train(*LONG)
    last, early = (
        card(read_run(run, name), "X", "mit", custom=False) for name in ("step_4", "step_2")
    )
    scores = json.loads((run / "summary.json").read_text())
    assert f"| training tokens | {scores['tokens_seen']:,} |" in last
    assert f"| held-out bits per byte, mean over domains | {scores['val_bpb']:.4g} |" in last
    assert f"| training tokens | {scores['tokens_seen'] // 2:,} |" in early
    assert "held-out" not in early, "it was validated at step 4 only"
    (run / "summary.json").write_text("")
    assert card(read_run(run, "step_4"), "X", "mit", custom=False) == last


def test_a_merged_model_carries_nothing_of_its_base_but_the_text(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.runs.stages import add_words, keep

    dense = ("experts=dense", "balance=none", "trainer.export_weights=last", *LONG)
    run = train(*dense, name="base")
    base = Path("runs/base")
    (base / "hf").mkdir()
    words = add_words(base, "one", ["data=text", "trainer.max_steps=2", "optimizer.lr=0.5"])
    train(
        *[word for word in words if not word.startswith(("data", "run="))],
        name="base-one",
        source=_source(run),
    )
    keep(base, "one", ["run=base-one"])
    skill.main(["merge", "runs/base", "run=merged", "one=3.0"])
    merged = base.parent / "merged"
    kept = {
        "config.yaml",
        "overrides.yaml",
        "text.json",
        "held_out.npz",
        "tokenizer.json",
        "checkpoints",
        ".lock",
    }
    assert {path.name for path in merged.iterdir()} <= kept
    saved = read_checkpoint(merged / "checkpoints/step_0.ckpt")
    assert saved.keys() == {"state_dict", "global_step"} and saved["global_step"] == 0
    train("resume=true", name="merged", source=())
    fresh, before = (
        json.loads((base.parent / f"{name}/summary.json").read_text())
        for name in ("merged", "base")
    )
    # of steps that it made itself
    assert before["tokens_seen"] == 4 * 4 * 32 and fresh["tokens_seen"] == 2 * 4 * 32
    assert fresh["val_bpb"] != before["val_bpb"]
    capsys.readouterr()


def _source(run: Path) -> tuple[str, ...]:
    from app.config.saved import read_config

    return ("data=text", f"data.path={read_config(run / 'config.yaml')['data']['path']}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=a/b", "one=1"], "run=a/b: must be a plain name"),
        (["run=../x", "one=1"], "run=../x: must be a plain name"),
        (["run=/abs", "one=1"], "run=/abs: must be a plain name"),
        (["run=.hidden", "one=1"], "run=.hidden: must be a plain name"),
        (["run=m", "one=nan"], "one=nan: must be NAME=SHARE with a finite number"),
        (["run=m", "one=inf"], "one=inf: must be"),
        (["run=m", "one=1e400"], "one=1e400: must be"),
        (["run=m", "one=x"], "one=x: must be"),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        skill.main(["merge", "runs/base", *words])
    assert said in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: {name: values[:0] for name, values in rows.items()}, "tokens is no table"),
        (lambda rows: rows | {"tokens": rows["tokens"] + 999}, "tokens must be in 0..256"),
        (lambda rows: rows | {"tokens": rows["tokens"].astype(float)}, "tokens is no table"),
        (lambda rows: rows | {"targets": rows["targets"] - 999}, "targets must be in -100..256"),
        (lambda rows: rows | {"domain": rows["domain"] + 5}, "domain must be in 0..0"),
        (lambda rows: rows | {"topic": rows["topic"] + 5}, "topic must be in"),
        (lambda rows: rows | {"nbytes": rows["nbytes"] - 5}, "nbytes must be in"),
        (lambda rows: rows | {"document": rows["document"][:, :3]}, "document is no table"),
        (
            lambda rows: {name: values for name, values in rows.items() if name != "topic"},
            "is missing or damaged",
        ),
        (lambda rows: rows | {"tokens": np.array([[None]])}, "is missing or damaged"),
    ],
)
def test_held_out_rows_that_cannot_be_are_refused(
    train: Train, change: Callable[[Any], Any], said: str
) -> None:
    path = train("trainer.max_steps=1") / "held_out.npz"
    with np.load(path) as file:
        rows = {name: file[name] for name in file.files}
    np.savez(path, **change(rows))
    with pytest.raises(UserError) as refusal:
        read_run(path.parent)
    assert str(refusal.value).startswith(f"{path}: ") and said in str(refusal.value)


def test_a_damaged_line_of_the_curves_is_left_out(train: Train) -> None:
    run = train("logger=csv", "trainer.max_steps=3", "trainer.log_every=1")
    path = run / "csv/metrics.csv"
    whole = table_of(run, ["Loss/train"])["Loss/train"]
    head, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        head + lines[0] + b"\xff\xfe,\x00\n" + b",".join([b"x"] * 9) + b"\n" + b"".join(lines[1:])
    )
    assert table_of(run, ["Loss/train"])["Loss/train"] == whole and len(whole) > 1


@pytest.mark.nightly
@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"step,x\n" + b"9" * 200_000 + b",1\n"])
def test_curves_that_cannot_be_resumed_are_refused_before_training(
    train: Train, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    run = train("logger=csv", "trainer.max_steps=2")
    (run / "csv/metrics.csv").write_bytes(content)
    assert table_of(run, ["Loss/train"])["Loss/train"] == []
    assert "csv/metrics.csv: is damaged" in mistake(
        train, capsys, "logger=csv", "resume=true", "trainer.max_steps=3"
    )
    assert not (run / "checkpoints/step_3.ckpt").exists()


def test_the_commit_is_that_of_the_code_wherever_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    own = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    git("init", "-q")
    git(
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@y",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "of another project",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert summary._git_commit() == (own or None) != git("rev-parse", "HEAD")
    inside = tmp_path / "site-packages/app/runs/summary.py"
    monkeypatch.setattr(summary, "__file__", str(inside))
    inside.parent.mkdir(parents=True)
    assert summary._git_commit() is None, "an installed package is not of the repository around it"


def test_runs_of_the_same_second_have_different_names(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(run_folder.datetime):
        @classmethod
        def now(cls, *_: Any) -> "Clock":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    for _ in range(3):
        train("run=null", "trainer.max_steps=1")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "2026-01-02_03-04-05",
        "2026-01-02_03-04-05_2",
        "2026-01-02_03-04-05_3",
    ]


def test_a_default_name_that_is_taken_while_the_text_is_read_is_changed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.runs import start

    text = start._text

    def slow(config: Any, folder: Path) -> Any:
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text("of another run")
        return text(config, folder.with_name("none"))

    monkeypatch.setattr(start, "_text", slow)
    train("run=null", "trainer.max_steps=1")
    assert (
        len([path for path in (tmp_path / "runs").iterdir() if (path / "summary.json").exists()])
        == 1
    )
