"""MoE++'s balance loss: f.P in which experts that compute next to nothing weigh less, so that more
tokens go to them.

    loss = sum_i eta_i f_i P_i,   eta_i = 1 for an expert with a network, tau for one without

Jin et al. 2024, arXiv 2410.07348, section 3.4, f and P as in `aux`. At uniform load its value is
the mean of eta; tau of 1, or a layout without such experts, makes it `aux`. The paper's capacity,
unequal in the same proportion, is left out.
"""

from typing import Literal

import torch
from torch import Tensor

from app.registry import register, require
from routers.balance.aux import Aux
from routers.contract import Routing, Sizes


@register("balance")
class Heterogeneous(Aux):
    """The balance loss that lets cheap experts take more than their share.

    Args:
        weight: of the term in the total loss; at least 0.
        scope: the tokens over which f and P are formed: `micro` (the micro-batch of a rank),
            `sequence` or `global` (the batch).
        tau: weight of an expert that computes next to nothing; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    eta: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float,
        scope: Literal["micro", "sequence", "global"],
        tau: float,
    ) -> None:
        super().__init__(sizes, weight=weight, scope=scope, choices="all")
        require("tau", tau, tau > 0, "must be positive")
        eta = [tau if expert in sizes.free else 1.0 for expert in range(sizes.num_experts)]
        self.register_buffer("eta", torch.tensor(eta), persistent=False)  # (E,)

    def probabilities(self, routing: Routing) -> Tensor:
        return super().probabilities(routing) * self.eta  # (B, E)
