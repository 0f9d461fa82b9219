"""Router z-loss: keeps the router's logits small, so that float32 is enough for its softmax.

    loss = mean over tokens and layers of (log sum_i exp(logit_i))^2

Zoph et al. 2022 (ST-MoE), arXiv 2202.08906, eq. 5. At equal logits 0 its value is (ln E)^2; that is
not its minimum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register
from routers.contract import LossTerm, Routing


@register("balance")
class ZLoss(LossTerm):
    """Keeps the logits small; balances nothing by itself.

    Args:
        weight: of the term in the total loss; at least 0 (0.001 in the paper).

    Raises:
        ValueError: a knob is out of its range.
    """

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        valid = routings[0].valid.flatten()  # (T,)
        squares = torch.stack([r.logits.logsumexp(-1).square() for r in routings])  # (L, T)
        return (squares * valid).sum() / (valid.sum().clamp_min(1) * len(routings))
