"""How much of each skill the mixture takes on each kind of text; after a validation, on all of its
tokens and ranks.

Nothing is written of a model whose layout has no named skills.
"""

import lightning
import torch
from torch import Tensor

from app.model.skills import names_of
from app.registry import register
from app.training.metrics import Total
from app.training.module import Batch, LanguageModel
from app.training.tags import Tag
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import labels_of, write
from routers.assignments import gates
from routers.contract import Routing


@register("callback")
class SkillShares(RoutingCallback):
    """Writes the mean gate of every skill in every domain: PSEC's alpha."""

    tags = (
        Tag(
            "skills/DOMAIN/SKILL",
            "mean share (gate) of a skill on held-out text of a domain, mean over the layers",
        ),
    )

    def __init__(self) -> None:
        self.total = Total()
        self.skills: list[str] = []
        self.domains: list[str] = []

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.total = Total()
        self.skills = names_of(pl_module.model)
        self.domains = list(labels_of(trainer, "domains"))

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        if self.skills:
            alpha = torch.stack([gates(routing) for routing in routings]).mean(0)  # (T, k)
            self.total.add(
                by_domain(
                    alpha, routings[0].valid.flatten(), batch["domain"].flatten(), len(self.domains)
                )
            )

    @torch.no_grad()
    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        sums = self.total.take()
        if sums:
            means = (sums["alpha"] / sums["tokens"][:, None].clamp_min(1)).tolist()  # (domains, k)
            rows = [
                (d, row)
                for d, row, seen in zip(self.domains, means, sums["tokens"].tolist(), strict=True)
                if seen
            ]
            write(
                trainer,
                {
                    f"skills/{d}/{s}": v
                    for d, row in rows
                    for s, v in zip(self.skills, row, strict=True)
                },
            )


def by_domain(alpha: Tensor, valid: Tensor, domain: Tensor, number: int) -> dict[str, Tensor]:
    """Sums of alpha (T, k) and numbers of tokens by domain, of valid (T,) and domain (T,):
    (domains, k), (domains,).
    """
    of = domain.masked_fill(~valid, number)
    sums = alpha.new_zeros(number + 1, alpha.size(1)).index_add_(0, of, alpha)
    return {
        "alpha": sums[:-1],
        "tokens": alpha.new_zeros(number + 1).index_add_(0, of, valid.to(alpha))[:-1],
    }
