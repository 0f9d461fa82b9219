"""Runs that are killed or interrupted at a chosen place, and what they must end as."""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.fault_points import install
from tests.conftest import ROOT, become_rank, free_port

LAST = 6


def same(one: Any, two: Any) -> bool:
    """Whether two checkpoints hold the same bits."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


def assert_same_end(straight: Path, resumed: Path, last: int = LAST) -> None:
    one, two = (
        torch.load(run / f"checkpoints/step_{last}.ckpt", weights_only=True)
        for run in (straight, resumed)
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "tokens_seen", "global_step"):
        assert same(one[part], two[part]), part


# every process starts as one that has imported, and done no more
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["app.runs.run", __name__])


# A fault point, and which of its visits.
Moment = tuple[str, int]
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def train_here(
    folder: Path, words: list[str], moment: Moment | None, *numbers: signal.Signals
) -> None:
    """Run train.py in this process, which gets signals when it passes a fault point."""
    os.chdir(folder)
    sys.argv = [str(ROOT / "train.py"), *words]
    if moment is not None:
        install(*moment, lambda: [signal.raise_signal(number) for number in numbers])
    runpy.run_path(sys.argv[0], run_name="__main__")


def _train_rank(rank: int, port: int, *args: Any) -> None:
    become_rank(rank, 2, port)
    train_here(*args)


def ended(process: Any) -> int | None:
    process.join(60)
    process.kill()  # had it hung
    return process.exitcode


def train(
    folder: Path, words: list[str], moment: Moment | None = None, *numbers: signal.Signals
) -> int | None:
    process = FRESH.Process(target=train_here, args=(folder, words, moment, *numbers))
    process.start()
    return ended(process)


def train_two(
    folder: Path,
    words: list[str],
    moment: Moment | None = None,
    how: Sequence[str] = TWO,
    killed: int = 1,
) -> list[int | None]:
    """On two processes, one of which gets the signal."""
    port = free_port()
    two = [
        FRESH.Process(
            target=_train_rank,
            args=(
                rank,
                port,
                folder,
                [*words, *how],
                moment if rank == killed else None,
                signal.SIGKILL,
            ),
        )
        for rank in range(2)
    ]
    for process in two:
        process.start()
    return [ended(process) for process in two]
