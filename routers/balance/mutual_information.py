"""Mutual information loss: experts are to be used equally often over tokens, but surely by each
token.

    loss = - I(expert; token) = mean_t H(p_t) - H(mean_t p_t),  mean over layers

Shen et al. 2023 (ModuleFormer), arXiv 2306.04640, section 3.3; the weight there is unverified. p
are the scores normalised over the experts, the mean is over the micro-batch. 0, the maximum, if all
tokens have the same probabilities; -ln E, the minimum, if each token is sure of its expert and all
experts are used equally.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register
from routers.contract import LossTerm, Routing
from routers.distributions import entropy


@register("balance")
class MutualInformation(LossTerm):
    """Makes each token sure of its experts and all experts equally likely over the tokens.

    Args:
        weight: of the term in the total loss; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        share = routings[0].valid.flatten() / routings[0].valid.sum().clamp_min(1)  # (T,)
        p = torch.stack([r.probabilities for r in routings])  # (L, T, E)
        conditional = (entropy(p) * share).sum(-1)  # (L,)
        return (conditional - entropy((p * share[:, None]).sum(1))).mean()
