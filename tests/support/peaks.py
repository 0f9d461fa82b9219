"""How much memory ranks need at most: `python -m tests.support.peaks '{...}'`, a process of
its own.

In the process of the tests, blocks that others have freed would be counted or not. glibc is told to
give large blocks back, so that what a process holds is what it uses.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.conftest import ROOT
from tests.support.ranks import each
from tests.support.sharded import VOCAB, as_run, bare_trainer


def peaks(config: dict[str, Any], ranks: int, steps: int) -> list[dict[str, int]]:
    """Of every rank, in bytes beyond what it held before it had a model:
    until the first step, and in the last.
    """
    job = json.dumps({"config": config, "ranks": ranks, "steps": steps})
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", __name__, job], capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class Watch(lightning.Callback):
    """Notes the peaks."""

    def __init__(self) -> None:
        self.before = highest()
        self.seen = dict[str, int]()

    def on_train_start(self, *_: Any) -> None:
        self.seen["building"] = highest() - self.before

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen["step"] = highest() - self.before
        # what was highest is now what there is
        Path("/proc/self/clear_refs").write_text("5")


def measured(config: dict[str, Any], ranks: int, steps: int, rank: int) -> dict[str, int]:
    watch = Watch()
    trainer = bare_trainer(config, ranks, steps)
    module = as_run(config, trainer)
    trainer.callbacks.append(watch)
    trainer.fit(module, DataLoader([batch(config, ranks)] * steps, batch_size=None))
    return watch.seen


def batch(config: dict[str, Any], ranks: int) -> dict[str, Tensor]:
    """The rows of a rank."""
    tokens = torch.randint(
        VOCAB, (config["data"]["batch_size"] // ranks, config["data"]["seq_len"])
    )
    same = dict.fromkeys(("document", "domain", "topic"), torch.zeros_like(tokens))
    whole = torch.ones_like(tokens)
    return {"tokens": tokens, "targets": tokens, "valid": whole.bool(), "nbytes": whole, **same}


def highest() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        work = partial(measured, *job.values())
        print(json.dumps(each(work, job["ranks"], Path(folder))))
