"""How much faster batches come than training takes them:
the default data, one process, no workers.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

from functools import partial

from benchmarks.bare import Bare
from benchmarks.report import Row, command
from benchmarks.timing import medians


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row: tokens per second of both, and their ratio."""
    bare = Bare(["model=nano"] if quick else [], device)
    batches = bare.batches()
    batch = next(bare.batches())
    works = {"data": partial(next, batches), "training": partial(bare.train_step, batch)}
    seconds = medians(works, 2, 3 if quick else 30, device)
    tokens = batch["valid"].sum().item()
    speeds = {f"{name}_tokens_per_s": tokens / each for name, each in seconds.items()}
    return [
        {"what": "batches over training", **speeds, "ratio": seconds["training"] / seconds["data"]}
    ]


if __name__ == "__main__":
    command("data", run)
