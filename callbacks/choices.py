"""What does the choice of experts hang on? After a validation, on its tokens: the same router chooses again.

Without the offset that a controller adds to the scores: how much it steers. With logits rounded to bfloat16: how many
choices are so close that the precision decides (why routers compute in float32). Compiled blocks are not looked into.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from app.analysis.specialisation import chosen
from app.registry import register
from app.training.metrics import Total
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.writing import write_by_layer
from routers.contract import Context, Routing, Scored
from routers.router import Router


@register("callback")
class Choices(lightning.Callback):
    """Writes how much of the choice is left without the offset of a controller, and under bfloat16."""

    tags = (
        Tag(
            "router/offset_overlap",
            "experts chosen both with and without the offset of the controllers, of those chosen either way (Jaccard)",
            "0..1",
            by_layer=True,
        ),
        Tag(
            "router/bf16_flips", "share of the tokens that logits in bfloat16 would give others", "0..1", by_layer=True
        ),
    )

    def __init__(self) -> None:
        self.total = Total()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        routers = pl_module.model.routers()
        self.hooks = [
            router.register_forward_hook(partial(self._look, layer, len(routers)))
            for layer, router in enumerate(routers)
        ]

    def _look(
        self, layer: int, layers: int, router: nn.Module, inputs: tuple[Tensor, Context], routing: Routing
    ) -> None:
        assert isinstance(router, Router)
        x, context = inputs
        valid, own = routing.valid.flatten(), chosen(routing)
        found = {"bf16_flips": (chosen(rounded(router, partial(router.forward, x, context))) != own).any(-1).float()}
        if isinstance(context.offset, Tensor):
            without = chosen(router.forward(x, context._replace(offset=0.0)))
            found["offset_overlap"] = (own & without).sum(-1) / (own | without).sum(-1).clamp_min(1)
        place = torch.nn.functional.one_hot(torch.tensor(layer, device=x.device), layers)  # (L,)
        sums = {name: (values * valid).sum() * place for name, values in found.items()}
        self.total.add(sums | {"tokens": valid.sum() * place})

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for hook in self.hooks:
            hook.remove()
        sums = self.total.take()
        tokens = sums.pop("tokens", torch.ones(1)).clamp_min(1)
        write_by_layer(trainer, "router", {name: value / tokens for name, value in sums.items()})


def rounded(router: Router, choose: Callable[[], Routing]) -> Routing:
    """What a router chooses with logits in bfloat16."""

    def rounding(score: nn.Module, inputs: Any, scored: Scored) -> Scored:
        return scored._replace(logits=scored.logits.bfloat16().float())

    hook = router.score.register_forward_hook(rounding)
    try:
        return choose()
    finally:
        hook.remove()
