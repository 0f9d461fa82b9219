"""Going on with a run: what it shows at its end is what a run that was never interrupted shows."""

import itertools
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from app.training import usage
from app.training.checkpoints import steps
from tests.support.interrupted import assert_same_end
from tests.support.mistakes import Train
from tests.support.mistakes import mistake as told
from tests.support.shell import Shell, command, environment, mistake, shown, tree

LONG = (
    "train SMALL trainer.max_steps=12 trainer.val_every=3 trainer.checkpoint_every=4 "
    "schedule.warmup_steps=2"
)


def logged(run: Path, tag: str) -> list[int]:
    return [step for step, _ in shown(run)[tag]]


@pytest.mark.parametrize("asked", ["", "trainer.max_steps=1", "trainer=ddp"])
def test_a_finished_run_is_at_its_last_step_and_is_not_touched(
    train: Train, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    before = tree(train())
    assert tree(train("resume=true", *asked.split())) == before
    assert "runs/run is at step 2" in capsys.readouterr().err


def test_what_a_killed_process_had_half_written_is_cleared_away(train: Train) -> None:
    folder = train()
    left = [
        folder / name
        for name in (
            "summary.json.part",
            "checkpoints/step_9.part",
            "checkpoints/step_9.sha256.part",
        )
    ]
    for path in left:
        path.write_text("half")
    train("resume=true", "trainer.max_steps=3")
    assert not [path for path in left if path.exists()]


def test_a_run_in_two_parts_adds_up(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that a second passes on at every look makes the sums independent of the machine's
    # speed.
    monkeypatch.setattr(usage, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    first = json.loads((train("trainer.max_steps=4") / "summary.json").read_text())
    second = json.loads((train("trainer.max_steps=8", "resume=true") / "summary.json").read_text())
    assert second["tokens_seen"] == 2 * first["tokens_seen"]
    assert second["wall_s"] > 1.5 * first["wall_s"]
    assert second["tokens_per_s"] < 1.5 * first["tokens_per_s"], (
        "twice the tokens in twice the time"
    )


def killed(
    folder: Path,
    name: str,
    step: int,
    number: signal.Signals,
    line: str = LONG,
    seconds: float = 100,
) -> int:
    """Starts a run and sends it a signal when it has logged a step; how it ended."""
    process = subprocess.Popen(
        command(f"{line} run={name} callbacks.progress.every=1"),
        cwd=folder,
        env=environment(),
        stderr=-1,
        text=True,
    )
    assert process.stderr is not None
    for said in process.stderr:
        if said.startswith(f"step {step}/"):
            process.send_signal(number)
            break
    process.communicate(timeout=seconds)
    return process.returncode


# test_moments.py has every moment, at exact places
@pytest.mark.nightly
def test_a_run_killed_from_outside_shows_every_point_once_and_every_validation(
    shell: Shell, folder: Path
) -> None:
    line = f"{LONG} callbacks=brief callbacks.samples=null"
    assert shell(f"{line} run=straight").returncode == 0
    straight = folder / "runs/straight"
    cut = folder / "runs/cut"
    assert killed(folder, "cut", 7, signal.SIGKILL, line) == -signal.SIGKILL
    assert shell("train run=cut resume=true").returncode == 0
    assert shown(cut) == shown(straight)
    assert logged(cut, "Loss/val_nats") == [2, 5, 8, 11]
    assert_same_end(straight, cut, 12)
    assert (cut / "summary.json").exists()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly), (signal.SIGINT, 130)],
)
def test_a_run_that_is_asked_to_end_saves_says_how_to_go_on_and_does_not_look_finished(
    shell: Shell, folder: Path, number: signal.Signals, status: int
) -> None:
    assert (
        killed(
            folder,
            "asked",
            5,
            number,
            LONG.replace("trainer.max_steps=12", "trainer.max_steps=400"),
        )
        == status
    )
    run = folder / "runs/asked"
    assert not (run / "summary.json").exists()
    (last, _), *_ = reversed(steps(run / "checkpoints"))
    assert last >= 5
    assert logged(run, "Loss/train") == list(range(last))
    assert shell(f"train run=asked resume=true trainer.max_steps={last + 2}").returncode == 0
    assert logged(run, "Loss/train") == list(range(last + 2))


@pytest.mark.nightly
def test_ctrl_c_during_tokenisation_leaves_no_half_cache(folder: Path) -> None:
    (folder / "t.txt").write_text((folder / "t.txt").read_text() * 400)
    hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  what a shell starts with & does not
    process = subprocess.Popen(
        command("train SMALL run=early"),
        cwd=folder,
        env=environment(),
        stderr=-1,
        text=True,
        preexec_fn=hears,
    )
    until = time.monotonic() + 60
    while not list(folder.glob(".cache/*.tmp")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(folder.glob(".cache/*.tmp"))
    assert not (folder / "runs").exists()


def test_the_only_good_checkpoint_is_kept_whatever_lies_beside_it(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = train("trainer.keep_checkpoints=1") / "checkpoints"
    for step in (100, 200):
        (checkpoints / f"step_{step}.ckpt").write_bytes(b"damaged")
    (checkpoints / "step_100.sha256").write_bytes(b"\xff\xfe")
    (checkpoints / "step_200.sha256").mkdir()
    train("resume=true", "trainer.max_steps=6", "trainer.checkpoint_every=1")
    assert (checkpoints / "step_6.ckpt").exists()
    (checkpoints / "step_6.ckpt").unlink()
    line = told(train, capsys, "resume=true", "trainer.max_steps=8")
    assert "damaged" in line and "checkpoints to start anew" in line


DAMAGE: dict[str, Any] = {
    "no yaml": ("config.yaml", lambda path: path.write_text("a: [1")),
    "no keys": ("config.yaml", lambda path: path.write_text("- a\n- b")),
    "foreign": ("config.yaml", lambda path: path.write_text("foo: 1")),
    "an unknown key": ("config.yaml", lambda path: path.write_text(path.read_text() + "foo: 1\n")),
    "an alias": (
        "config.yaml",
        lambda path: path.write_text(
            path.read_text().replace("run: ", "resume: &a false\nrun: *a #")
        ),
    ),
    "no text": ("config.yaml", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "a folder": ("config.yaml", lambda path: (path.unlink(), path.mkdir())),
    "no list": ("overrides.yaml", lambda path: path.write_text("a: 1")),
    "no archive": ("held_out.npz", lambda path: path.write_text("PK")),
    "no json": ("text.json", lambda path: path.write_text("{")),
}


def test_a_damaged_small_file_is_named_in_one_line(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    good = train()
    for name, how in DAMAGE.values():
        bad = good.with_name("bad")
        shutil.copytree(good, bad)
        how(bad / name)
        with pytest.raises(SystemExit) as end:
            train("resume=true", "trainer.max_steps=3", name="bad")
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert end.value.code == 2
        assert "runs/bad" in line and name in line
        shutil.rmtree(bad)


def test_a_reference_in_a_saved_config_is_a_word(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train() / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["dim"] = "${oc.env:HOME}"
    path.write_text(yaml.safe_dump(config))
    assert "model.dim=${oc.env:HOME}: must be int" in told(
        train, capsys, "resume=true", "trainer.max_steps=3"
    )


def test_the_same_text_at_another_place_is_the_same_text(
    train: Train, text: Path, tmp_path: Path
) -> None:
    moved = [tmp_path / "a.txt", tmp_path / "b.txt"]
    shutil.copy(text, moved[0])
    train(f"data.path={moved[0]}", f"data.cache_dir={tmp_path / 'cache'}")
    moved[0].rename(moved[1])
    shutil.rmtree(tmp_path / "cache")
    train(f"data.path={moved[1]}", "resume=true", "trainer.max_steps=4")
    assert (tmp_path / "runs/run/checkpoints/step_4.ckpt").exists()


@pytest.mark.nightly
def test_a_run_of_two_processes_under_a_matched_config_goes_on_alone(
    shell: Shell, folder: Path
) -> None:
    two = "trainer=ddp trainer.accelerator=cpu trainer.devices=2"
    done = shell(
        f'train SMALL run=wide experts=coarse match.reference="experts.hidden_dim=48" {two}'
    )
    assert done.returncode == 0, done.stderr
    done = shell("train run=wide resume=true trainer=cpu trainer.max_steps=6")
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs/wide/summary.json").read_text())
    assert summary["tokens_seen"] == 6 * 128
    assert logged(folder / "runs/wide", "Loss/train") == list(range(6))


@pytest.mark.nightly
def test_a_process_that_never_joins_ends_the_other_in_one_line(folder: Path) -> None:
    alone = {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29517",
    }
    words = command("train SMALL run=lone trainer=ddp trainer.accelerator=cpu trainer.timeout_s=3")
    done = subprocess.run(
        words, cwd=folder, env=environment() | alone, capture_output=True, text=True, timeout=60
    )
    assert "trainer.timeout_s=3" in mistake(done)
    assert not (folder / "runs").exists()
