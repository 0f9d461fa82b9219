"""Do experts grow, and how many directions do they use? Norm and stable rank of each one, every
`every` steps.

The stable rank of a matrix, |W|_F^2 / |W|_2^2, is at least 1 and at most its rank: what falls
towards 1 does one thing.
"""

import lightning
import torch

from app.analysis.specialisation import expert_norms, stable_ranks
from app.model.moe import MoE
from app.registry import register, require
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.writing import event_writer, step_of, write_by_layer


@register("callback")
class ExpertWeights(lightning.Callback):
    """Writes the size and the stable rank of the experts' weights.

    Args:
        every: steps between two points; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "weights/expert_norm", "Frobenius norm of the weights of an expert, mean", by_layer=True
        ),
        Tag("weights/expert_norm_max", "that of the largest expert", by_layer=True),
        Tag(
            "weights/stable_rank",
            "stable rank of an expert's output matrix, mean",
            "directions",
            by_layer=True,
        ),
        Tag(
            "weights/stable_rank_min",
            "that of the expert with the lowest one",
            "directions",
            by_layer=True,
        ),
        Tag("weights/expert_norm/LAYER", "all experts", "1", "histogram"),
        Tag("weights/stable_rank/LAYER", "all experts", "directions", "histogram"),
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
        layers = [module.experts for module in pl_module.model.modules() if isinstance(module, MoE)]
        norms = list(map(expert_norms, layers))
        ranks = list(map(stable_ranks, layers))
        spread = {
            "expert_norm": [norm.mean() for norm in norms],
            "expert_norm_max": [norm.max() for norm in norms],
            "stable_rank": [rank.mean() for rank in ranks],
            "stable_rank_min": [rank.min() for rank in ranks],
        }
        write_by_layer(
            trainer, "weights", {name: torch.stack(values) for name, values in spread.items()}
        )
        if writer := event_writer(trainer):
            for name, each in (("expert_norm", norms), ("stable_rank", ranks)):
                for layer, values in enumerate(each):
                    writer.add_histogram(f"weights/{name}/{layer}", values.cpu(), step_of(trainer))
