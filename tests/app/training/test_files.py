"""Files are whole or as they were: what breaks off while one is written leaves the one before."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.training.checkpoints import digest, write_atomically
from app.training.files import write_whole

WRITERS: dict[str, Callable[[Path, int], None]] = {
    "a small file": lambda path, number: write_whole(path, f"number {number}"),
    "a checkpoint": lambda path, number: write_atomically(
        {"state_dict": {"w": torch.full((9,), number)}}, path
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_that_breaks_off_leaves_the_one_before(
    write: Callable[[Path, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step_1.ckpt"
    write(path, 1)
    before = digest(path)

    def broken(_: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="power cut"):
        write(path, 2)
    assert digest(path) == before
    monkeypatch.undo()
    write(path, 2)
    assert digest(path) != before and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_nobody_sees_a_file_that_is_half_written(
    write: Callable[[Path, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step_1.ckpt"
    seen = []

    def flushed(place: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(place).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", flushed)
    write(path, 1)
    contents = [there for is_folder, there in seen if not is_folder]
    assert contents and not any(contents)
    # its name is on the disk, too
    assert seen[-1] == (True, True)
