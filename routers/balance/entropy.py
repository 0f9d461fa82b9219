"""Dynamic loss: the entropy of a token's probabilities, so that top-p routing cannot buy experts by
flattening them.

    loss = - sum_i p_(i,t) ln p_(i,t),  mean over tokens and layers

Huang et al. 2024 (Dynamic_MoE), arXiv 2403.07652 (weight 1e-4 beside f.P). p are the scores
normalised over the experts. ln E at equal probabilities, the maximum; 0, the minimum, where one
expert has them all: by itself it does not balance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register
from routers.contract import LossTerm, Routing
from routers.distributions import entropy


@register("balance")
class Entropy(LossTerm):
    """Makes tokens surer of their experts; balances nothing by itself.

    Args:
        weight: of the term in the total loss; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        valid = routings[0].valid.flatten()  # (T,)
        each = torch.stack([entropy(r.probabilities) for r in routings])  # (L, T)
        return (each * valid).sum() / (valid.sum().clamp_min(1) * len(routings))
