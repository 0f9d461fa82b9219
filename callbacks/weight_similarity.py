"""How alike are the weights of the experts? Every `every` steps; the same on all ranks.

    specialisation/weight_similarity    1 for equal experts, 0 for orthogonal ones (RMoE's measure, rescaled)

The mean over layers, and `specialisation_by_layer/weight_similarity/LAYER`.
"""

from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import FSDPStrategy

from app.moe import MoE
from app.registry import register, require
from app.specialisation import weight_similarity
from app.training import LanguageModel
from callbacks.watcher import write_by_layer


@register("callback")
class WeightSimilarity(lightning.Callback):
    """Raises ValueError if `every` (steps) is not positive. Under FSDP, whose weights are cut up, it writes nothing."""

    def __init__(self, *, every: int) -> None:
        require("every", every, every >= 1, "must be at least 1")
        self.every = every

    @torch.no_grad()
    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every or isinstance(trainer.strategy, FSDPStrategy):
            return
        assert isinstance(pl_module, LanguageModel)
        layers = [module for module in pl_module.model.modules() if isinstance(module, MoE)]
        values = [value for layer in layers if (value := weight_similarity(layer.experts)) is not None]
        if values:
            write_by_layer(trainer, "specialisation", {"weight_similarity": torch.stack(values)})
