"""Which parts learn? Norms of the gradients after clipping, every `trainer.log_every` steps.

`train/grad_norm` is the norm of everything before clipping.
"""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from app.model.moe import MoE
from app.model.transformer import Transformer
from app.registry import register
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.writing import logs, write


@register("callback")
class GradientNorms(lightning.Callback):
    """Writes the norms of the gradients of routers, experts and the rest,
    every `trainer.log_every` steps.
    """

    tags = (
        Tag("gradient/router", "norm of the gradient of the routers"),
        Tag("gradient/experts", "norm of the gradient of the layouts, with their shared experts"),
        Tag("gradient/rest", "norm of the gradient of all else"),
    )

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self.squares: dict[str, Tensor] = {}
        if not logs(trainer, trainer.global_step + 1):
            return
        assert isinstance(pl_module, LanguageModel)
        for name, parameters in parameter_groups(pl_module.model).items():
            square = sum(
                (_square(p.grad) for p in parameters if p.grad is not None),
                torch.zeros((), device=pl_module.device),
            )
            self.squares[name] = square

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if logs(trainer):
            write(
                trainer,
                {f"gradient/{name}": square.sqrt() for name, square in self.squares.items()},
            )


def parameter_groups(model: Transformer) -> dict[str, list[nn.Parameter]]:
    """Every parameter in one of three groups."""
    routers: list[nn.Module] = [
        *model.routers(),
        *([model.shared_score] if model.shared_score else []),
    ]
    layouts = [layer.experts for layer in model.modules() if isinstance(layer, MoE)]
    groups = {"router": _parameters(routers), "experts": _parameters(layouts)}
    taken = {id(p) for parameters in groups.values() for p in parameters}
    return groups | {"rest": [p for p in model.parameters() if id(p) not in taken]}


def _parameters(modules: list[Any]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters()]


def _square(gradient: Tensor) -> Tensor:
    norm = gradient.float().norm()
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).square()
