"""Work on several real processes that know of each other, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

from tests.conftest import become_rank, free_port


def fork(work: Callable[[int], None], ranks: int) -> None:
    """Calls `work` with its rank in several processes."""
    start_processes(_worker, (ranks, free_port(), work), nprocs=ranks, start_method="fork")


def each(work: Callable[[int], Any], ranks: int, folder: Path) -> list[Any]:
    """What `work` returns on every rank: tensors and plain values."""
    fork(lambda rank: torch.save(work(rank), folder / f"rank_{rank}.pt"), ranks)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(ranks)]


def _worker(rank: int, ranks: int, port: int, work: Callable[[int], None]) -> None:
    become_rank(rank, ranks, port)
    torch.set_num_threads(1)
    work(rank)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
