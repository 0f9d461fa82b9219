"""The highest memory of a training step, beside the dense model and `transformers`, each in a
process of its own.

The sizes of `benchmarks.step`; what a process held before it built its model is taken off. On CUDA:
what was allocated.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

import multiprocessing

import torch

from benchmarks import step
from benchmarks.layer import dtypes
from benchmarks.report import Row, command
from benchmarks.timing import highest_memory


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row a contender and dtype; the ratio is to `transformers`."""
    sizes = step.Sizes(rows=2, layers=2) if quick else step.Sizes()
    rows = []
    for dtype in dtypes(device)[:1] if quick else dtypes(device):
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {
                name: pool.apply(_peak, (name, sizes, dtype, device)) for name in step.CONTENDERS
            }
        rows += [
            {
                "what": name,
                "dtype": str(dtype).removeprefix("torch."),
                "MB": peak / 1e6,
                "ratio": peak / peaks["transformers"],
            }
            for name, peak in peaks.items()
        ]
    return rows


def _peak(name: str, sizes: step.Sizes, dtype: torch.dtype, device: str) -> int:
    """Bytes."""
    torch.set_num_threads(2)
    step.CONTENDERS[name](step.Sizes(rows=1, length=8, layers=1, vocab=64))  # imports what it needs
    before = _highest(device)
    work = step.work(*step.CONTENDERS[name](sizes), dtype, device, sizes)
    for _ in range(3):
        work()
    return _highest(device) - before


def _highest(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else highest_memory()


if __name__ == "__main__":
    command("memory", run)
