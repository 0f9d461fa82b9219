"""Capacity: an expert computes at most C assignments of a micro-batch, what is beyond is dropped.

    C = ceil(factor T K / E),  a constant of the shape

`position` keeps the earliest tokens of all sequences (Switch, Fedus et al. 2021, arXiv 2101.03961, eq. 3, there
sequence after sequence), so no token depends on a later one. `choice` serves all first choices before any second
choice (GShard, Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1); `score` drops the lowest affinities first
(DeepSeek-V2, arXiv 2405.04434, section 2.2.4, there per device): both let a later token take an earlier one's place.
As in DeepSeek-V2 an `exempt` share of the training sequences is never dropped (drawn anew for each layer; they take
their places, so the others are dropped no later), and nothing is dropped at evaluation unless `eval`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Choice, Drop, Sizes, assigned, count, rank_in_token


@register("drop")
class Capacity(Drop):
    """Raises ValueError if `factor` is not positive or `exempt` is not in 0..1."""

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
        self.factor, self.order, self.exempt, self.at_eval = factor, order, exempt, eval
        self.causal = "always" if order == "position" else "never" if eval else "eval"

    def forward(self, choice: Choice) -> Tensor:
        num_tokens, num_experts = choice.scores.shape
        served = choice.expert < num_experts
        if not (self.training or self.at_eval):
            return served
        capacity = math.ceil(self.factor * num_tokens * choice.top_k / num_experts)
        first = self._key(choice).argsort(stable=True)
        first = first[choice.expert[first].argsort(stable=True)]  # by expert, then by who comes first
        load = count(choice.expert, num_experts + 1).long()
        place = torch.arange(len(first), device=first.device) - (load.cumsum(0) - load)[choice.expert[first]]
        fits = torch.empty_like(served).scatter(0, first, place < capacity)
        return served & (fits | self._exempted(choice))

    def _key(self, choice: Choice) -> Tensor:
        """What is served first has the lowest key: (A,)."""
        num_sequences, length = choice.valid.shape
        if self.order == "position":
            return choice.token % length * num_sequences + choice.token // length
        score = assigned(choice.scores, choice.token, choice.expert)
        if self.order == "score":
            return -score
        return rank_in_token(score, choice.token, len(choice.scores)) * len(choice.scores) + choice.token

    def _exempted(self, choice: Choice) -> Tensor:
        num_sequences, length = choice.valid.shape
        drawn = torch.rand(num_sequences, generator=torch.Generator().manual_seed(choice.seed))
        return (drawn.to(choice.token.device) < (self.exempt if self.training else 0))[choice.token // length]
