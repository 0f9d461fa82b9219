"""Where does the time of a step go, operation by operation? By torch's profiler, over a few steps.

Those that take longest stand in TensorBoard's Text tab; all of them, of every rank, in the folder
`profile` of the run as `*.pt.trace.json`, which https://ui.perfetto.dev opens.
"""

from functools import partial
from pathlib import Path

import lightning
import torch
from torch.profiler import profile, schedule, tensorboard_trace_handler

from app.registry import register, require
from app.training.messages import warn
from app.training.tags import Tag
from callbacks.writing import event_writer, step_of


@register("callback")
class Profile(lightning.Callback):
    """Records the operations of a few steps.

    Args:
        skip: steps before the first that is recorded, which are slower than others; at least 1.
        steps: how many are recorded; at least 1.
        rows: operations in the table; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "profile/operations",
            "where the recorded steps spent their time",
            "text",
            "text",
            "rank 0",
        ),
    )

    def __init__(self, *, skip: int, steps: int, rows: int) -> None:
        for name, value in (("skip", skip), ("steps", steps), ("rows", rows)):
            require(name, value, value >= 1, "must be at least 1")
        self.skip = skip
        self.steps = steps
        self.rows = rows

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.recorded = False
        phases = schedule(wait=self.skip - 1, warmup=1, active=self.steps, repeat=1)
        self.recorder = profile(schedule=phases, on_trace_ready=partial(self._write, trainer))
        self.recorder.start()

    def on_train_batch_end(self, *_: object) -> None:
        self.recorder.step()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.recorder.stop()
        if not self.recorded:
            warn(
                f"callbacks.profile.skip={self.skip}: the run has no later step, nothing was "
                "recorded"
            )

    def _write(self, trainer: lightning.Trainer, recorder: profile) -> None:
        self.recorded = True
        folder = Path(trainer.default_root_dir) / "profile"
        tensorboard_trace_handler(str(folder), f"rank_{trainer.global_rank}")(recorder)
        writer = event_writer(trainer)
        if writer is not None:
            by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            text = recorder.key_averages().table(sort_by=by, row_limit=self.rows)
            writer.add_text("profile/operations", f"```\n{text}\n```", step_of(trainer))
