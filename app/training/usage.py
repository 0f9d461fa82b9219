"""What a run has used, over all its parts: seconds and bytes."""

import resource
import time
from typing import Any

import lightning
import torch


class Usage(lightning.Callback):
    """Counts on from what a checkpoint has counted."""

    def __init__(self) -> None:
        self.before = {"wall_s": 0.0, "training_s": 0.0, "peak_memory_bytes": 0}
        self.started = time.monotonic()
        self.training_started: float | None = None
        # seconds of validation in this part
        self.paused = 0.0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.training_started = time.monotonic()
        self.paused = 0.0

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.validation_started = time.monotonic()

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.paused += time.monotonic() - self.validation_started

    def state_dict(self) -> dict[str, object]:
        now = time.monotonic()
        trained = (
            now - self.training_started - self.paused if self.training_started is not None else 0.0
        )
        return {
            "wall_s": self.before["wall_s"] + now - self.started,
            "training_s": self.before["training_s"] + trained,
            "peak_memory_bytes": max(self.before["peak_memory_bytes"], _peak_memory()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
