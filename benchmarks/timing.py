"""Timing of contenders that take turns,
so that other work on the machine meets all of them alike.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch

K = TypeVar("K")
# what is timed, by any name
Works = Mapping[K, Callable[[], object]]


def in_turns(
    works: Works[K],
    warm_up: int,
    rounds: int,
    device: str = "cpu",
    before_round: Callable[[], object] = lambda: None,
) -> dict[K, list[float]]:
    """Seconds of every contender in every round, with those of the warm-up;
    `before_round` is not timed.
    """
    seconds: dict[K, list[float]] = {name: [] for name in works}
    for _ in range(warm_up + rounds):
        before_round()
        for name, work in works.items():
            start = _now(device)
            work()
            seconds[name].append(_now(device) - start)
    return seconds


def medians(works: Works[K], warm_up: int, rounds: int, device: str = "cpu") -> dict[K, float]:
    """The median of each after the warm-up."""
    return {
        name: median(times[warm_up:])
        for name, times in in_turns(works, warm_up, rounds, device).items()
    }


def _now(device: str) -> float:
    """Seconds, after all work on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


def highest_memory() -> int:
    """The most bytes that this process has had; what `getrusage` says is also its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows, all of the same keys, with their keys above them."""
    names = list(rows[0])
    cells = [
        names,
        *([f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
