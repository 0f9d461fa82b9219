"""What tests of checkpoints share: a disk that is soon full."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB where the runs lie."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(runs)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield runs
    subprocess.run(["umount", "-l", str(runs)], check=True)
