"""A kill at every moment that leaves another state on the disk:
the run goes on and ends as a straight one does.
"""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from app.training.checkpoints import read_checkpoint, steps
from tests.support.interrupted import (
    same,
    train,
    train_two,
)
from tests.support.shell import SMALL, shown, write_text

pytestmark = pytest.mark.nightly

LINE = (
    f"{SMALL} data.micro_batch_size=2 trainer.val_every=3 trainer.log_every=3 "
    "logger=[tensorboard,csv] router=noisy_topk balance=[aux,loss_free] callbacks=full "
    "callbacks.expert_pictures.every=2 callbacks.samples.every=2 callbacks.samples.num_tokens=2"
).split()
FEWER = [
    *LINE,
    *(
        f"callbacks.{name}=null"
        for name in ("co_activation", "domain_pictures", "layer_information")
    ),
]
SPLIT = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2")
CLOCK = ("wall_s", "tokens_per_s", "peak_memory_bytes")


def names(run: Path) -> set[str]:
    """Of all files but those of TensorBoard, which have the time in theirs."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.parent.name != "tb"}


def summary(run: Path) -> dict[str, Any]:
    found = json.loads((run / "summary.json").read_text())
    return {name: value for name, value in found.items() if name not in CLOCK}


def table(run: Path) -> list[dict[str, str]]:
    """The rows of the CSV log without what the clock says."""
    with (run / "csv/metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if "speed" not in name}
            for row in csv.DictReader(file)
        ]


def state(run: Path) -> dict[str, Any]:
    """The last checkpoint, but what the clock says and Lightning's count of validation batches."""
    saved = read_checkpoint(run / "checkpoints/step_4.ckpt")
    del saved["callbacks"]["Usage"], saved["loops"]
    return saved


# of the run above, which validates after steps 3 and 4 on two batches and saves after 2 and 4
# Fault points of the run above, which validates after steps 3 and 4 on two batches and saves after
# steps 2 and 4; and which of their visits.
MOMENTS = {
    "the text is cut into tokens": ("write tokens", 1),
    "the first small file is written, but under another name": ("replace config.yaml", 1),
    "the folder is complete, but under another name": ("rename run folder", 1),
    "the folder is there, and nothing was trained": ("training step", 1),
    "a checkpoint is written": ("write checkpoint", 2),
    "inside the first checkpoint": ("checkpoint without checksum", 1),
    "a checksum without its checkpoint": ("checksum without checkpoint", 1),
    "after the first checkpoint": ("checkpoint saved", 1),
    "inside a validation": ("validation step", 2),
    "inside the last validation": ("validation step", 4),
    "inside the last checkpoint": ("checkpoint without checksum", 2),
    "after the last checkpoint": ("checkpoint saved", 2),
    "before the summary": ("write summary", 1),
    "inside the summary": ("replace summary.json", 1),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    write_text(folder)
    assert train(folder, [*FEWER, "run=whole"]) == 0
    return folder / "runs/whole"


def assert_same(cut: Path, straight: Path) -> None:
    assert shown(cut) == shown(straight)
    assert table(cut) == table(straight)
    assert summary(cut) == summary(straight)
    assert same(state(cut), state(straight))
    assert names(cut) == names(straight)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_goes_on_to_what_a_straight_run_shows(
    straight: Path, folder: Path, moment: str
) -> None:
    assert train(folder, [*FEWER, "run=cut"], MOMENTS[moment], signal.SIGKILL) == -signal.SIGKILL
    assert train(folder, [*FEWER, "run=cut", "resume=true"]) == 0
    assert_same(folder / "runs/cut", straight)


@pytest.mark.parametrize(
    ("moment", "number", "status", "saved"),
    [
        ("inside a validation", signal.SIGTERM, 143, [2, 3]),
        ("inside a validation", signal.SIGINT, 130, [2, 3]),
        ("inside the last validation", signal.SIGTERM, 0, [2, 4]),
    ],
)
def test_a_run_asked_to_end_inside_a_validation_makes_up_for_it(
    straight: Path, folder: Path, moment: str, number: signal.Signals, status: int, saved: list[int]
) -> None:
    assert train(folder, [*FEWER, "run=cut"], MOMENTS[moment], number) == status
    cut = folder / "runs/cut"
    assert [step for step, _ in steps(cut / "checkpoints")] == saved
    assert (cut / "summary.json").exists() == (status == 0)
    assert train(folder, [*FEWER, "run=cut", "resume=true", "trainer.keep_checkpoints=1"]) == 0
    assert train(folder, [*FEWER, "run=cut", "resume=true"]) == 0
    assert shown(cut) == shown(straight)
    assert same(state(cut), state(straight))


def test_a_second_ctrl_c_ends_a_run_at_once(folder: Path) -> None:
    third_step = ("training step", 3)
    assert train(folder, [*FEWER, "run=cut"], third_step, signal.SIGINT, signal.SIGINT) == 130
    assert [step for step, _ in steps(folder / "runs/cut/checkpoints")] == [2]


def test_a_run_on_two_processes_goes_on_to_what_a_straight_one_shows(folder: Path) -> None:
    assert train_two(folder, [*LINE, "run=whole"]) == [0, 0]
    inside_the_second_step = ("training step", 4)
    assert train_two(folder, [*LINE, "run=cut"], inside_the_second_step) == [2, -signal.SIGKILL]
    assert train_two(folder, [*LINE, "run=cut", "resume=true"]) == [0, 0]
    assert_same(folder / "runs/cut", folder / "runs/whole")


# of a checkpoint that two ranks write, and which of them is killed
# Fault points of a checkpoint that two ranks write, which of their visits, and the rank that dies.
PARTS = {
    "before it writes its part": ("write part", 2, 1),
    "its part has no sum yet": ("part without checksum", 2, 1),
    "all parts are there, and nothing says what lies where": ("parts without metadata", 2, 0),
    "the sums are there, and the folder has another name": ("rename checkpoint folder", 2, 0),
    "the folder has its name, but perhaps not for good": ("checkpoint folder renamed", 2, 0),
}


# of these, all others are slow
QUICK = ("its part has no sum yet", "sharded")


@pytest.fixture(scope="module")
def straight_in_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    write_text(folder)
    assert train_two(
        folder, [*FEWER, "run=whole", "trainer.checkpoint_format=sharded"], how=SPLIT
    ) == [0, 0]
    return folder / "runs/whole"


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        pytest.param(
            moment, written, marks=[] if (moment, written) == QUICK else pytest.mark.nightly
        )
        for moment in PARTS
        for written in ("sharded", "async")
    ],
)
def test_a_rank_killed_while_parts_are_written_leaves_the_checkpoint_before(
    straight_in_parts: Path, folder: Path, moment: str, written: str
) -> None:
    place, visit, killed = PARTS[moment]
    words = [*FEWER, "run=cut", f"trainer.checkpoint_format={written}", "trainer.timeout_s=20"]
    statuses = train_two(folder, words, (place, visit), SPLIT, killed)
    assert statuses[killed] == -signal.SIGKILL and statuses[1 - killed] == 2
    assert train_two(folder, [*words, "resume=true"], how=SPLIT) == [0, 0]
    assert_same(folder / "runs/cut", straight_in_parts)
