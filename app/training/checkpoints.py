"""Checkpoints that survive: complete or absent, checked by their sum, the newest few, also on SIGTERM.

A training batch is an optimizer step, so every save lies between two steps. A file is written under another name,
flushed to the disk and renamed; its SHA-256 stands beside it. A damaged file is skipped for the one before. Files
are read as tensors and plain values only: what would run code on loading is refused.
"""

import hashlib
import os
import pickle
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from app.registry import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads one file; `failure` says why the last one could not be written."""

    failure: str | None = None

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
            self.failure = cause.strerror

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location, weights_only=True)


class Checkpoints(lightning.Callback):
    """Saves every `every` steps and every `minutes`, after the last step, and when the process is asked to end.

    Raises:
        UserError: the disk is full or the folder cannot be written; older checkpoints are undamaged.
    """

    def __init__(self, folder: Path, every: int, minutes: float | None, keep: int, timeout_s: int) -> None:
        self.folder, self.every, self.minutes, self.keep, self.timeout_s = folder, every, minutes, keep, timeout_s
        self.asked_to_end = False
        self.last_resort: threading.Timer | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.last_step, self.last_time = trainer.global_step, time.monotonic()
        self._previous = signal.signal(signal.SIGTERM, self._ask_to_end)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        timed = self.minutes is not None and time.monotonic() - self.last_time > 60 * self.minutes
        # ranks hear of time and signals at different moments, and must agree
        asked = trainer.strategy.reduce_boolean_decision(timed or self.asked_to_end, all=False)
        if asked or trainer.global_step % self.every == 0:
            self._save(trainer)
        if trainer.strategy.reduce_boolean_decision(self.asked_to_end, all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._save(trainer)
        signal.signal(signal.SIGTERM, self._previous)
        if self.last_resort is not None:
            self.last_resort.cancel()

    def _ask_to_end(self, *args: Any) -> None:
        """A process that hangs comes to no step's end: it ends after the time-out all the same."""
        if not self.asked_to_end:
            self.last_resort = threading.Timer(self.timeout_s, os._exit, (128 + signal.SIGTERM,))
            self.last_resort.daemon = True
            self.last_resort.start()
        self.asked_to_end = True

    def _save(self, trainer: lightning.Trainer) -> None:
        if self.last_step == trainer.global_step:
            return
        self.last_step, self.last_time = trainer.global_step, time.monotonic()
        path = self.folder / f"step_{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        failure = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", None))
        if failure:
            raise UserError(
                f"{path}: cannot be written ({failure}); older checkpoints are undamaged, resume=true goes on from them"
            )
        self._prune()

    @rank_zero_only
    def _prune(self) -> None:
        for _, path in steps(self.folder)[: -self.keep]:
            path.unlink(missing_ok=True)
            checksum(path).unlink(missing_ok=True)


def write_atomically(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a file under another name and, once it is on the disk, gives it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    checksum(path).write_text(digest(part) + "\n")
    part.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint: tensors and plain values.

    Raises:
        UserError: it holds anything else, which may be a program.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is refused: it is no file of tensors and plain values ({reason})") from error


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The undamaged checkpoint of the highest step, and a line for every damaged one that was skipped."""
    damaged: list[str] = []
    for _, path in reversed(steps(folder)):
        if checksum(path).exists() and checksum(path).read_text().strip() == digest(path):
            return path, damaged
        damaged.append(f"{path} is damaged (its checksum differs): using the one before")
    return None, damaged


def steps(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoints of a folder with their steps, in order."""
    return sorted((int(m[1]), p) for p in folder.glob("*.ckpt") if (m := re.fullmatch(r"step_(\d+)", p.stem)))


def checksum(path: Path) -> Path:
    """Where the sum of a checkpoint stands."""
    return path.with_suffix(".sha256")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
