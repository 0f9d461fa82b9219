"""Capacity: an expert computes at most C assignments of a micro-batch, what is beyond is dropped.

    C = ceil(factor T K / E),  a constant of the shape;  K: what the selection gives a token

`position` keeps the earliest tokens of all sequences (Switch, Fedus et al. 2021, arXiv 2101.03961,
eq. 3, there sequence after sequence), so no token depends on a later one. `choice` serves all first
choices before any second choice (GShard, Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1);
`score` drops the lowest affinities first (DeepSeek-V2, arXiv 2405.04434, section 2.2.4, there per
device): both let a later token take an earlier one's place. As in DeepSeek-V2 an `exempt` share of
the training sequences is never dropped (drawn anew for each layer; they take their places, so the
others are dropped no later), and nothing is dropped at evaluation unless `eval`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from app.registry import register, require
from routers.assignments import assigned, count, rank_in_token
from routers.contract import Context, Drop, Selected, Sizes


@register("drop")
class Capacity(Drop):
    """Drops the assignments of an expert beyond its capacity, a constant of the shape.

    Args:
        factor: places of an expert, in units of its mean load; above 0.
        order: who is served first: `position` (causal), `choice` (first choices first) or `score`
            (highest scores first).
        exempt: share of the training sequences that is never dropped; in 0..1.
        eval: whether it drops at evaluation too.

    Raises:
        ValueError: a knob is out of its range.
    """

    scope = "batch"

    def __init__(
        self,
        sizes: Sizes,
        *,
        factor: float,
        order: Literal["position", "choice", "score"],
        exempt: float,
        eval: bool,
    ) -> None:
        super().__init__(sizes)
        require("factor", factor, factor > 0, "must be positive")
        require("exempt", exempt, 0 <= exempt <= 1, "must be in 0..1, a share of the sequences")
        self.factor = factor
        self.order = order
        self.exempt = exempt
        self.at_eval = eval
        self.eval_scope = "batch" if eval else "token"
        self.causal = "always" if order == "position" else "never" if eval else "eval"

    def forward(self, selected: Selected, context: Context) -> Tensor:
        num_tokens, num_experts = selected.scores.shape
        served = selected.expert < num_experts
        if not (self.training or self.at_eval):
            return served
        capacity = math.ceil(self.factor * num_tokens * selected.top_k / num_experts)

        # Assignments by expert, then by who is served first.
        order = self._key(selected, context.valid).argsort(stable=True)
        order = order[selected.expert[order].argsort(stable=True)]
        load = count(selected.expert, num_experts + 1).long()
        # (E + 1,): where an expert's assignments start in this order
        starts = load.cumsum(0) - load
        expert = selected.expert[order]
        rank = torch.arange(len(order), device=order.device) - starts[expert]
        within = torch.empty_like(served).scatter(0, order, rank < capacity)
        return served & (within | self._exempted(selected.token, context))

    def _key(self, selected: Selected, valid: Tensor) -> Tensor:
        """What is served first has the lowest key: (A,)."""
        num_sequences, length = valid.shape
        if self.order == "position":
            return selected.token % length * num_sequences + selected.token // length
        score = assigned(selected.scores, selected.token, selected.expert)
        if self.order == "score":
            return -score
        return (
            rank_in_token(score, selected.token, len(selected.scores)) * len(selected.scores)
            + selected.token
        )

    def _exempted(self, token: Tensor, context: Context) -> Tensor:
        """Which assignments belong to a sequence that is never dropped: (A,)."""
        if not (self.exempt and self.training):
            return torch.zeros_like(token, dtype=torch.bool)
        length = context.valid.size(1)
        drawn = context.drawn("drop", 1)[::length, 0]  # of each sequence
        return (drawn < self.exempt)[token // length]
