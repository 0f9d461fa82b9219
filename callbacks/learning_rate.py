"""The learning rate of the step that comes next, every `trainer.log_every` steps."""

import lightning

from app.registry import register
from app.training.tags import Tag
from callbacks.writing import logs, write


@register("callback")
class LearningRate(lightning.Callback):
    """Writes the learning rate, every `trainer.log_every` steps."""

    tags = (Tag("train/lr", "learning rate of the next step"),)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if logs(trainer):
            write(trainer, {"train/lr": trainer.optimizers[0].param_groups[0]["lr"]})
