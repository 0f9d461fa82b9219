"""The base of the callbacks that look at the experts.
They only watch: nothing of the training hangs on them.
"""

from functools import partial
from typing import Any

import lightning

from app.training.metrics import Total
from app.training.module import Batch, LanguageModel
from routers.contract import Routing


class RoutingCallback(lightning.Callback):
    """Sees the routings of every forward pass of a LanguageModel, those of training apart from
    those of validation.

    A model without routed experts shows it nothing. What is added up stays on the device until a
    step that logs.
    """

    # Names of the attributes that a checkpoint holds and a resumed run restores.
    kept: tuple[str, ...] = ()

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        self._hook = partial(self._dispatch, pl_module)
        pl_module.routing_hooks.append(self._hook)

    def teardown(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        pl_module.routing_hooks.remove(self._hook)

    def state_dict(self) -> dict[str, object]:
        state = {}
        for name in self.kept:
            value = getattr(self, name)
            state[name] = value.state() if isinstance(value, Total) else value
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            attribute = getattr(self, name)
            if isinstance(attribute, Total):
                attribute.restore(value)
            else:
                setattr(self, name, value)

    def on_training_routings(self, routings: list[Routing], batch: Batch) -> None:
        """Called without gradient after every forward pass of training:
        once per micro-batch of this rank.
        """

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        """Called without gradient after every forward pass of validation."""

    def _dispatch(self, module: LanguageModel, routings: list[Routing], batch: Batch) -> None:
        if routings and module.training:
            self.on_training_routings(routings, batch)
        elif routings:
            self.on_validation_routings(routings, batch)
