"""`train.py` and the commands as a user types them:
each in a fresh process, in an empty folder with a small text.
"""

import subprocess
from pathlib import Path

import pytest

from tests.support.shell import (
    Done,
    Shell,
    command,
    environment,
    write_text,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path)
    return tmp_path


@pytest.fixture
def shell(folder: Path) -> Shell:
    """Runs `python WORDS` in the folder;
    `train` stands for train.py, and after it `SMALL` for the settings above.
    """

    def run(line: str, timeout: float = 120) -> Done:
        return subprocess.run(
            command(line),
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
