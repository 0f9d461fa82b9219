"""How alike are the weights of the experts? Every `every` steps."""

import lightning
import torch

from app.analysis.specialisation import weight_similarity
from app.model.moe import MoE
from app.registry import register, require
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.writing import write_by_layer


@register("callback")
class WeightSimilarity(lightning.Callback):
    """Writes how alike the weights of a layer's experts are.

    Args:
        every: steps between two points; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "specialisation/weight_similarity",
            "1 for equal experts, 0 for orthogonal ones (RMoE's measure, rescaled)",
            "-1..1",
            by_layer=True,
        ),
    )

    def __init__(self, *, every: int) -> None:
        require("every", every, every >= 1, "must be at least 1")
        self.every = every

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if trainer.global_step % self.every:
            return
        assert isinstance(pl_module, LanguageModel)
        layers = [module for module in pl_module.model.modules() if isinstance(module, MoE)]
        values = [
            value for layer in layers if (value := weight_similarity(layer.experts)) is not None
        ]
        if values:
            write_by_layer(trainer, "specialisation", {"weight_similarity": torch.stack(values)})
