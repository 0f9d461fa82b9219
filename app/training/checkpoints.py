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
from app.training.files import settle, write_whole
from app.training.loggers import flush
from app.training.messages import say
from app.training.module import LanguageModel


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

    A save lies between two steps: after all that a step has logged and, unless the process is asked to end, after its
    validation. SIGTERM and Ctrl-C end the run there, with status 143 and 130; a second Ctrl-C ends it at once.

    Raises:
        UserError: the disk is full or the folder cannot be written; older checkpoints are undamaged.
    """

    def __init__(self, folder: Path, every: int, minutes: float | None, keep: int, timeout_s: int) -> None:
        self.folder, self.every, self.minutes, self.keep, self.timeout_s = folder, every, minutes, keep, timeout_s
        self.asked_by: int | None = None  # the signal that asked this process to end
        self.last_resort: threading.Timer | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, self._ask_to_end)}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.last_step, self.last_time = trainer.global_step, time.monotonic()
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask_to_end)  # in the place of Lightning's
        # which Lightning would broadcast, and wait for, in every step
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any
    ) -> None:
        loop = trainer.fit_loop.epoch_loop  # which counts one too many after a restart: its points and validations move
        loop._batches_that_stepped, loop.batch_progress.total.ready = trainer.global_step, trainer.global_step + 1
        timed = self.minutes is not None and time.monotonic() - self.last_time > 60 * self.minutes
        wish = timed or self.asked_by is not None
        # ranks hear of time and signals at different moments: they agree in the sums of the step that begins
        assert isinstance(pl_module, LanguageModel)
        pl_module.wish = wish
        if wish if trainer.world_size == 1 else pl_module.wished:
            self._save(trainer)
            self._end_if_asked(trainer)
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._end_if_asked(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._end_if_asked(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._save(trainer)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.last_resort is not None:
            self.last_resort.cancel()

    def _ask_to_end(self, number: int, *args: Any) -> None:
        """A process that hangs comes to no step's end: it ends after the time-out all the same."""
        if self.asked_by == number == signal.SIGINT:
            os._exit(128 + number)
        if self.asked_by is None:
            self.last_resort = threading.Timer(self.timeout_s, os._exit, (128 + number,))
            self.last_resort.daemon = True
            self.last_resort.start()
        self.asked_by = number

    def _end_if_asked(self, trainer: lightning.Trainer) -> None:
        """The last validation is not broken off: nothing would be left to go on with."""
        if trainer.global_step >= trainer.max_steps:
            return
        if trainer.strategy.reduce_boolean_decision(self.asked_by is not None, all=False):
            self._save(trainer)
            again = f"python train.py run={self.folder.parent.name} resume=true"
            say(f"ended at step {trainer.global_step}, which is saved; go on with {again}")
            raise SystemExit(128 + (self.asked_by or signal.SIGTERM) if trainer.is_global_zero else 0)

    def _save(self, trainer: lightning.Trainer) -> None:
        if self.last_step == trainer.global_step:
            return
        self.last_step, self.last_time = trainer.global_step, time.monotonic()
        path = self.folder / f"step_{trainer.global_step}.ckpt"
        flush(trainer.loggers)  # a killed process leaves no point behind that is older than its checkpoint
        trainer.save_checkpoint(path, weights_only=False)
        failure = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", None))
        if failure:
            raise UserError(
                f"{path}: cannot be written ({failure}); older checkpoints are undamaged, resume=true goes on from them"
            )
        self._prune(trainer.global_step)

    @rank_zero_only
    def _prune(self, step: int) -> None:
        """Keeps the newest up to this step, which is good; what lies behind it may be damaged."""
        for _, path in [known for known in steps(self.folder) if known[0] <= step][: -self.keep]:
            path.unlink(missing_ok=True)
            checksum(path).unlink(missing_ok=True)


def write_atomically(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a file under another name and, once it is on the disk with its sum, gives it its own, for good."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    write_whole(checksum(path), digest(part) + "\n")
    part.replace(path)
    settle(path.parent)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint: tensors and plain values.

    Raises:
        UserError: it holds anything else, which may be a program, or is none of ours.
    """
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
        if _is_whole(path):
            return path, damaged
        damaged.append(f"{path} is damaged (its checksum differs)")
    return None, damaged


def _is_whole(path: Path) -> bool:
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


def checksum(path: Path) -> Path:
    """Where the sum of a checkpoint stands."""
    return path.with_suffix(".sha256")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
