"""Checkpoints that survive: complete or absent, and checked by their sum.

A file is written under another name, flushed to the disk and renamed; its SHA-256 stands beside it. A damaged file is
skipped for the one before. Files are read as tensors and plain values only: what would run code on loading is refused.
A checkpoint may also be a folder (app.training.shards), of which the same holds.
"""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch.distributed import ProcessGroup

from app.registry import UserError
from app.training.files import checksum, digest, remove, settle, write_whole
from app.training.shards import PLAIN, read_shards, write_shards


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints; `failure` says why the last one could not be written."""

    failure: str | None = None
    pending: tuple[Path, Callable[[], None]] | None = None  # of which the ranks still write their parts

    def save_parts(self, checkpoint: dict[str, Any], path: Path, background: ProcessGroup | None) -> None:
        """Called on all ranks, each of which writes its part, the ranks of `background` while training goes on."""
        self.wait()
        if self.failure is None:
            self.pending = path, write_shards(checkpoint, path, background)
        if background is None:
            self.wait()

    def wait(self) -> None:
        """Until nothing is written any more; all ranks hear of a failure, so it raises nothing either."""
        if self.pending is not None:
            (path, finish), self.pending = self.pending, None
            try:
                finish()
            except OSError as error:
                self.failure = f"{path}: cannot be written ({error.strerror})"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Called on the first rank only, so it raises nothing: the other ranks would wait for it."""
        try:
            write_atomically(checkpoint, Path(path))
            self.failure = None
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__  # torch's writer stumbles over it again
            if not isinstance(cause, OSError):
                raise
            Path(path).with_suffix(".part").unlink(missing_ok=True)
            self.failure = f"{path}: cannot be written ({cause.strerror})"

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def write_atomically(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a file under another name and, once it is on the disk with its sum, gives it its own, for good."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    write_whole(checksum(path), digest(part) + "\n")
    if path.is_dir():  # a damaged one, from before the run went on
        remove(path)
    part.replace(path)
    settle(path.parent)


def is_checkpoint(path: Path) -> bool:
    """Whether there is one, a file or a folder; a file may turn out to be something else."""
    return path.is_file() or (path / PLAIN).is_file()


def read_checkpoint(path: Path, only_shapes: bool = False) -> dict[str, Any]:
    """A checkpoint: tensors and plain values.

    Args:
        path: a file, whose tensors are read when they are used, or a folder.
        only_shapes: the tensors of the model and its optimizers are not looked at; those of a folder are not read.

    Raises:
        UserError: it holds anything else, which may be a program, or is none of ours.
    """
    if path.is_dir():
        return read_shards(path, only_shapes)
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is refused: it is no file of tensors and plain values ({reason})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: is no checkpoint of ours: it has no state_dict; restore it, or delete it")
    return checkpoint


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The undamaged checkpoint of the highest step, and a line for every damaged one above it."""
    damaged: list[str] = []
    for _, path in reversed(steps(folder)):
        if is_whole(path):
            return path, damaged
        damaged.append(f"{path} is damaged (its checksum differs)")
    return None, damaged


def is_whole(path: Path) -> bool:
    """Whether a checkpoint has the sum that stands beside it."""
    try:
        return checksum(path).read_text(encoding="utf-8").strip() == digest(path)
    except (OSError, UnicodeDecodeError):  # none, a folder, no text
        return False


def steps(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoints of a folder with their steps, in order."""
    return sorted((int(m[1]), p) for p in folder.glob("*.ckpt") if (m := re.fullmatch(r"step_(\d+)", p.stem)))


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was saved, by its name."""
    return int(path.stem.removeprefix("step_"))
