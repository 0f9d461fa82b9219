"""Who does the work, the shared or the routed experts? Norms of what both add to a token, on held-out text."""

from functools import partial

import lightning
import torch
from torch import Tensor, nn

from app.model.moe import MoE
from app.registry import register
from app.training.metrics import Total
from app.training.tags import Tag
from callbacks.writing import write_by_layer
from routers.contract import Context, Routing


@register("callback")
class SharedShare(lightning.Callback):
    """Writes how much of the output of a layer the shared expert gives; nothing where there is none."""

    tags = (
        Tag(
            "experts/shared_share",
            "norm of the shared output over the sum of that and of the routed output's, mean over tokens",
            "0..1",
            by_layer=True,
        ),
    )

    def __init__(self) -> None:
        self.total = Total()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        layers = [module for module in pl_module.modules() if isinstance(module, MoE)]
        self.hooks = [
            layer.register_forward_hook(partial(self._look, place, len(layers))) for place, layer in enumerate(layers)
        ]

    def _look(
        self, place: int, layers: int, layer: nn.Module, inputs: tuple[Tensor, Context], outputs: tuple[Tensor, Routing]
    ) -> None:
        assert isinstance(layer, MoE)
        y, routing = outputs
        shared = layer.experts.shared(inputs[0].flatten(0, 1))
        if shared is None:
            return
        valid, norm = routing.valid.flatten(), shared.float().norm(dim=-1)
        rest = (y.flatten(0, 1) - shared).float().norm(dim=-1)
        at = torch.nn.functional.one_hot(torch.tensor(place, device=y.device), layers)  # (L,)
        share = (norm / (norm + rest).clamp_min(1e-9) * valid).sum()
        self.total.add({"share": share * at, "tokens": valid.sum() * at})

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for hook in self.hooks:
            hook.remove()
        sums = self.total.take()
        if sums:
            write_by_layer(trainer, "experts", {"shared_share": sums["share"] / sums["tokens"].clamp_min(1)})
