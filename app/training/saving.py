"""When a run saves, and what it keeps: the newest few checkpoints, one of them made when it is
asked to end.

A training batch is an optimizer step, so every save lies between two steps.
"""

import os
import signal
import threading
import time
from pathlib import Path

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only

from app.fault_points import fault_point
from app.registry import UserError
from app.training.checkpoints import CheckpointFiles, steps
from app.training.files import checksum, remove
from app.training.loggers import flush
from app.training.messages import say
from app.training.module import LanguageModel
from app.training.processes import environment


class Checkpoints(lightning.Callback):
    """Saves every `every` steps and every `minutes`, after the last step, and when the process is
    asked to end.

    A save lies between two steps: after all that a step has logged and, unless the process is asked
    to end, after its validation. SIGTERM and Ctrl-C end the run there, with status 143 and 130; a
    second Ctrl-C ends it at once.

    Raises:
        UserError: the disk is full or the folder cannot be written; older checkpoints are
            undamaged.
    """

    def __init__(
        self, folder: Path, every: int, minutes: float | None, keep: int, timeout_s: int
    ) -> None:
        self.folder = folder
        self.every = every
        self.minutes = minutes
        self.keep = keep
        self.timeout_s = timeout_s
        # the signal that asked this process to end
        self.asked_by: int | None = None
        self.last_resort: threading.Timer | None = None

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, self._ask_to_end)}

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.last_step = trainer.global_step
        self.last_time = time.monotonic()
        # In the place of Lightning's handler, which stops after a whole epoch at the earliest.
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask_to_end)
        # Lightning broadcasts whether a rank has got SIGTERM in every step, and all ranks wait for
        # it. No option switches that off; our ranks agree in the sums of the step.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: object
    ) -> None:
        # After a restart Lightning counts one batch too many, so the points of its loggers and its
        # validations move. It offers no setter of this count.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = trainer.global_step
        loop.batch_progress.total.ready = trainer.global_step + 1
        timed = self.minutes is not None and time.monotonic() - self.last_time > 60 * self.minutes
        save_requested = timed or self.asked_by is not None
        # Ranks hear of time and signals at different moments: they agree in the sums of the step
        # that begins now, and save before the one after it.
        assert isinstance(pl_module, LanguageModel)
        pl_module.save_requested = save_requested
        if trainer.world_size > 1:
            save_requested = pl_module.any_rank_requested_save
        if save_requested:
            self._save(trainer)
            self._end_if_asked(trainer)
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._end_if_asked(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *args: object) -> None:
        self._end_if_asked(trainer)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._save(trainer)
        self._finish(trainer)

    def teardown(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.last_resort is not None:
            self.last_resort.cancel()

    def _ask_to_end(self, number: int, *args: object) -> None:
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
            self._finish(trainer)
            again = f"python train.py run={self.folder.parent.name} resume=true"
            say(f"ended at step {trainer.global_step}, which is saved; go on with {again}")
            # Lightning kills the first process where another one, that it has started, ends with a
            # status
            told = trainer.is_global_zero or not isinstance(environment(), LightningEnvironment)
            raise SystemExit(128 + (self.asked_by or signal.SIGTERM) if told else 0)

    def _save(self, trainer: lightning.Trainer) -> None:
        if self.last_step == trainer.global_step:
            return
        self.last_step = trainer.global_step
        self.last_time = time.monotonic()
        path = self.folder / f"step_{trainer.global_step}.ckpt"
        # a killed process leaves no point behind that is older than its checkpoint
        flush(trainer.loggers)
        trainer.save_checkpoint(path, weights_only=False)
        self._check(trainer)
        fault_point("checkpoint saved")
        self._prune(trainer.global_step)

    def _finish(self, trainer: lightning.Trainer) -> None:
        """The last one is complete before the run ends."""
        _files(trainer).wait()
        self._check(trainer)
        self._prune(trainer.global_step)

    def _check(self, trainer: lightning.Trainer) -> None:
        failure = trainer.strategy.broadcast(_files(trainer).failure)
        if failure:
            raise UserError(
                f"{failure}; older checkpoints are undamaged, resume=true goes on from them"
            )

    @rank_zero_only
    def _prune(self, step: int) -> None:
        """Keeps the newest up to this step, which is good; what lies behind it may be damaged."""
        for _, path in [known for known in steps(self.folder) if known[0] <= step][: -self.keep]:
            remove(path)
            remove(checksum(path))


def _files(trainer: lightning.Trainer) -> CheckpointFiles:
    files = trainer.strategy.checkpoint_io
    assert isinstance(files, CheckpointFiles)
    return files
