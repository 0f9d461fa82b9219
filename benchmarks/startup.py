"""How long `train.py` takes until it trains: fresh processes in turns, the text being cached.

The ratio is to a process that imports torch and Lightning and does nothing.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from app.data.module import build_data
from benchmarks.report import Row, command
from benchmarks.timing import medians

ROOT = Path(__file__).parent.parent


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row for every process."""
    from app.config.compose import composed

    with tempfile.TemporaryDirectory() as folder:
        small = ["model=nano", "data.val_rows=2", "trainer.max_steps=1"]
        small += [
            "data=text",
            f"data.path={ROOT / 'LOG.md'}",
            "tokenizer=bytes",
            f"data.cache_dir={folder}/cache",
        ]
        config = composed(small)
        build_data(config["data"], config["tokenizer"], 0).prepare()
        train = [sys.executable, str(ROOT / "train.py")]
        processes = {
            "import torch, lightning": [sys.executable, "-c", "import torch, lightning.pytorch"],
            "train.py --help": [*train, "--help"],
            "train.py, one step of model=nano": [*train, *small],
        }
        works = {name: partial(_finish, words, folder) for name, words in processes.items()}
        seconds = medians(works, 0, 1 if quick else 5)
    first = next(iter(seconds.values()))
    return [{"what": name, "s": each, "ratio": each / first} for name, each in seconds.items()]


def _finish(words: list[str], folder: str) -> None:
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    command("startup", run)
