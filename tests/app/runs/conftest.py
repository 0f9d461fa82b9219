"""`train.py` and the commands as a user types them: each in a fresh process, in an empty folder with a small text."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

SMALL = (
    "model=nano tokenizer=bytes data=text data.path=t.txt data.seq_len=32 data.batch_size=4 data.val_rows=4 "
    "callbacks=off trainer.max_steps=4 trainer.val_every=2 trainer.checkpoint_every=2 trainer.log_every=1"
)
Done = subprocess.CompletedProcess[str]
Shell = Callable[..., Done]


def environment() -> dict[str, str]:
    """Of a user's shell: nothing that the tests or an earlier run have set."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = [
        "the",
        "people",
        "of",
        "the",
        "town",
        "say",
        "to",
        "each",
        "other",
        "in",
        "the",
        "morning",
        "what",
        "they",
        "have",
        "seen",
        "at",
        "night",
    ]
    lines = [" ".join(words[(n * k) % len(words)] for k in range(1, 15)) + f" {n}" for n in range(800)]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def shell(folder: Path) -> Shell:
    """Runs `python WORDS` in the folder; `train` stands for train.py, and after it `SMALL` for the settings above."""

    def run(line: str, timeout: float = 120) -> Done:
        return subprocess.run(
            command(line), cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout
        )

    return run


def command(line: str) -> list[str]:
    """What a line starts."""
    words = line.replace("SMALL", SMALL).split()
    return [sys.executable, *(str(ROOT / "train.py") if word == "train" else word for word in words)]


def mistake(done: Done) -> str:
    """The one line of a user's mistake."""
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def tree(folder: Path) -> dict[str, int]:
    """All files below a folder, with when they were written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}
