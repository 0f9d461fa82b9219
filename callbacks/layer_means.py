"""The base of the callbacks that look into layers on held-out text:
what they see of tokens is written in the mean.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from app.training.metrics import Total
from app.training.module import LanguageModel
from callbacks.writing import write_by_layer


class LayerMeans(lightning.Callback):
    """Writes means over the real tokens of a validation of what `look` tells of each, by layer."""

    group: str  # of the tags

    def __init__(self) -> None:
        self.total = Total()

    def layers(self, module: LanguageModel) -> Sequence[nn.Module]:
        """What is looked into, from the bottom to the top."""
        raise NotImplementedError

    def look(self, layer: Any, inputs: Any, outputs: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Values (T,) of the tokens of a forward pass, by the name of their tag,
        and which are real (T,) bool.
        """
        raise NotImplementedError

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        layers = self.layers(pl_module)
        self.hooks = [
            layer.register_forward_hook(partial(self._add, place, len(layers)))
            for place, layer in enumerate(layers)
        ]

    def _add(self, place: int, number: int, layer: nn.Module, inputs: object, outputs: Any) -> None:
        values, real = self.look(layer, inputs, outputs)
        here = torch.nn.functional.one_hot(torch.tensor(place, device=real.device), number)  # (L,)
        sums = {name: (value * real).sum() * here for name, value in values.items()}
        self.total.add(sums | {"tokens": real.sum() * here})

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        for hook in self.hooks:
            hook.remove()
        sums = self.total.take()
        tokens = sums.pop("tokens", torch.ones(1)).clamp_min(1)
        write_by_layer(trainer, self.group, {name: value / tokens for name, value in sums.items()})
