"""Dropless: every assignment is computed, however uneven the load (MegaBlocks, Gale et al.
2022, arXiv 2211.15841).
"""

from torch import Tensor

from app.registry import register
from routers.contract import Context, Drop, Selected


@register("drop")
class NoDrop(Drop):
    """Keeps every assignment, however uneven the load."""

    def forward(self, selected: Selected, context: Context) -> Tensor:
        return selected.expert < selected.scores.size(1)  # (A,)
