"""Dropless: every assignment is computed, however uneven the load (MegaBlocks, Gale et al. 2022, arXiv 2211.15841)."""

from torch import Tensor

from app.registry import register
from routers.contract import Choice, Drop


@register("drop")
class NoDrop(Drop):
    """Keeps all."""

    def forward(self, choice: Choice) -> Tensor:
        return choice.expert < choice.scores.size(1)  # (A,)
