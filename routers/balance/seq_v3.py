"""DeepSeek-V3's complementary sequence-wise loss: f.P, f counting the choice as it would be without
bias and groups.

    f_i = E / (K T) sum_t 1(s_(i,t) among the K largest of s_(.,t))
    P_i = 1/T sum_t s_(i,t) / sum_j s_(j,t)
    loss = sum_i f_i P_i,  mean over sequences and layers;  T the tokens of the sequence

DeepSeek-V3, arXiv 2412.19437, eq. 17-20 (weight 1e-4, beside `loss_free`). With plain top-k it
equals `aux` with scope `sequence`; with an offset or a group limit it does not, because f sees
neither. K is the selection's. 1.0 at uniform load.
"""

import torch
from torch import Tensor

from app.registry import register
from routers.balance.aux import Aux
from routers.contract import Routing, Sizes
from routers.distributions import sequence_sum


@register("balance")
class SeqV3(Aux):
    """DeepSeek-V3's guard against uneven sequences, beside a bias that evens out the batch.

    Args:
        weight: of the term in the total loss; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, weight: float) -> None:
        super().__init__(sizes, weight=weight, scope="sequence", choices="all")

    @torch.no_grad()
    def loads(self, routing: Routing) -> Tensor:
        best = routing.scores.topk(routing.top_k, dim=-1).indices  # (T, K)
        # (B, E)
        return sequence_sum(torch.zeros_like(routing.scores).scatter(1, best, 1), routing.valid)
