"""Every validation that is due happens, once:
a run may end at any moment, and its last step is any step.
"""

import lightning

from app.training.module import LanguageModel


class Validations(lightning.Callback):
    """Makes up for the validation that was due at the step of a checkpoint, and validates after the
    last step.

    Lightning itself validates every `val_every` steps, after the step.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        # it would go on in the middle of one, its sums lost
        trainer.fit_loop.epoch_loop.val_loop.restarting = False
        if trainer.global_step and trainer.global_step % self.every == 0:
            self._validate(trainer, pl_module)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._validate(trainer, pl_module)

    def _validate(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, LanguageModel)
        if module.validation.get("step") == trainer.global_step:
            return
        # As Lightning's own loop validates. The logger's flag says whether a batch was the first,
        # and validation would leave it set; Trainer.validate cannot run inside of fit.
        first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first
