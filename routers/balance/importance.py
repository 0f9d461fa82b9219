"""Importance loss: the squared coefficient of variation of the experts' summed gates.

    Importance_i = sum_t G(t)_i      loss = CV(Importance)^2 = var_i / mean_i^2, mean over layers

Shazeer et al. 2017, arXiv 1701.06538, eq. 6-7 (weight 0.1 there). The variance is that of all E
experts, not an estimate with E - 1. 0, the minimum, if all experts have the same importance,
whatever their load; E / K - 1 if the same K experts of equal gates serve every token.
"""

from collections.abc import Sequence

from torch import Tensor

from app.registry import register
from routers.assignments import importance
from routers.contract import LossTerm, Routing
from routers.distributions import squared_variation


@register("balance")
class Importance(LossTerm):
    """Evens out the experts' summed gates, whatever their load.

    Args:
        weight: of the term in the total loss; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        return squared_variation(importance(routings)).mean()
