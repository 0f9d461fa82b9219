"""Auxiliary balance loss f.P: the share of the load times the mean probability, summed over the
experts.

    f_i = E / (K T) sum_t 1(t selects i)      P_i = 1/T sum_t p_(i,t)
    loss = sum_i f_i P_i, mean over layers

GShard (Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1: f counts the first choice), Switch
(arXiv 2101.03961, eq. 4-6) and DeepSeekMoE (arXiv 2401.06066, eq. 12-14). p are the scores
normalised over the experts, and K is the measured mean number of assignments per token, so the
value is 1.0 at uniform load for any K and E. The scope says over which tokens f and P are formed:
`micro` (GShard, Switch), each `sequence` (DeepSeekMoE's expert-level loss as its code has it) or
the `global` batch (Qiu et al. 2025, arXiv 2501.11873): f over all ranks and over the micro-batches
so far, P over the ranks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from app.registry import register
from routers.assignments import assigned, rank_in_token, sequence_load
from routers.collectives import num_ranks, rank_sum
from routers.contract import LossTerm, Routing, Sizes
from routers.distributions import sequence_sum


@register("balance")
class Aux(LossTerm):
    """The balance loss of GShard, Switch and DeepSeekMoE: 1.0 at uniform load, larger where the
    load is uneven.

    Args:
        weight: of the term in the total loss; at least 0. A weight w is w/L per layer where a paper
            sums over its L layers.
        scope: the tokens over which f and P are formed: `micro` (the micro-batch of a rank),
            `sequence` or `global` (the batch).
        choices: that f counts: `all` of a token, or only its `first`, the one with the largest
            score (GShard).

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float,
        scope: Literal["micro", "sequence", "global"],
        choices: Literal["all", "first"],
    ) -> None:
        super().__init__(sizes, weight=weight)
        self.scope = scope
        self.choices = choices

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        tokens = routings[0].valid.sum(1)  # (B,)
        loads = torch.stack([self.loads(r) for r in routings])  # (L, B, E)
        probs = torch.stack([self.probabilities(r) for r in routings])  # (L, B, E)
        if self.scope != "sequence":
            tokens = tokens.sum(0, keepdim=True)
            loads = loads.sum(1, keepdim=True)
            probs = probs.sum(1, keepdim=True)
        if self.scope == "global":
            tokens = rank_sum(tokens) / num_ranks()
            loads = rank_sum(loads if seen is None else loads + seen[:, None])
        f = loads.size(-1) * loads / loads.sum(-1, keepdim=True).clamp_min(1)
        p = probs / tokens[:, None].clamp_min(1)
        value = (f * p).sum(-1)  # (L, B), or (L, 1)
        return value.mean(0).sum() / tokens.count_nonzero().clamp_min(1)

    def loads(self, routing: Routing) -> Tensor:
        """What f counts, per sequence and expert (B, E)."""
        if self.choices == "all":
            return sequence_load(routing)
        num_tokens, num_experts = routing.scores.shape
        score = assigned(routing.scores.detach(), routing.token, routing.expert, -torch.inf)
        later = rank_in_token(score, routing.token, num_tokens) > 0
        return sequence_load(
            routing._replace(expert=routing.expert.masked_fill(later, num_experts))
        )

    def probabilities(self, routing: Routing) -> Tensor:
        """What P averages, summed over each sequence (B, E)."""
        return sequence_sum(routing.probabilities, routing.valid)

    def observe(self, routings: Sequence[Routing]) -> Tensor:
        return torch.stack([self.loads(r).sum(0) for r in routings])  # (L, E)
