"""Mutual information loss: experts are to be used equally often over tokens, but surely by each token.

    loss = - I(expert; token) = mean_t H(p_t) - H(mean_t p_t),  mean over layers

Shen et al. 2023 (ModuleFormer), arXiv 2306.04640, section 3.3; the weight there is unverified. p are the scores
normalised over the experts, the mean is over the micro-batch. 0, the maximum, if all tokens have the same
probabilities; -ln E, the minimum, if each token is sure of its expert and all experts are used equally.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Balance, Routing, Sizes, distribution, entropy


@register("balance")
class MutualInformation(Balance):
    """Raises ValueError if `weight` is negative."""

    def __init__(self, sizes: Sizes, *, weight: float) -> None:
        super().__init__()
        require("weight", weight, weight >= 0, "must not be negative")
        self.weight = weight

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        share = routings[0].valid.flatten() / routings[0].valid.sum().clamp_min(1)  # (T,)
        p = torch.stack([distribution(r.scores) for r in routings])  # (L, T, E)
        conditional = (entropy(p) * share).sum(-1)  # (L,)
        return (conditional - entropy((p * share[:, None]).sum(1))).mean()
