"""`train/lr`: the learning rate of the step that comes next, every `trainer.log_every` steps; the same on all ranks."""

from typing import Any

import lightning

from app.registry import register
from callbacks.watcher import logs, write


@register("callback")
class LearningRate(lightning.Callback):
    """Nothing to choose: `trainer.log_every` says when."""

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        if logs(trainer):
            write(trainer, {"train/lr": trainer.optimizers[0].param_groups[0]["lr"]})
