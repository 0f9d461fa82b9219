"""SparseMixer-v2: the gate of the r-th choice is a softmax over what is left, its gradient that of
a sampled choice.

    p_r  = softmax over the candidates without the r-1 experts chosen before, at the chosen expert
    gate = m p_r  forward,  d gate = d p_r  backward
    m    = 1 for the likeliest candidate; for another one 1 with probability 1/4, else 1/3;
        1 in evaluation

GRIN (Liu et al. 2024, arXiv 2409.12136, section 2), after SparseMixer (arXiv 2310.00811): m is
Heun's third-order method, which estimates the gradient through the choice. Candidates are those of
the selection `sparsemixer`, and the chosen expert. An expert is chosen before another one if the
selection lists it first.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.assignments import rank_in_token
from routers.contract import Activated, Context, Sizes, Weigh
from routers.select.sparsemixer import candidates


@register("weigh")
class SparseMixer(Weigh):
    """Weighs each choice by a softmax over what is left, with the gradient of a sampled choice;
    never normalised.

    Args:
        scale: factor on every gate; above 0.
        eps: half the relative distance from the best logit within which an expert is a candidate;
            at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, scale: float, eps: float) -> None:
        super().__init__(sizes, normalize=False, scale=scale)
        require("eps", eps, eps >= 0, "must not be negative")
        self.eps = eps

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)  # (T, E)

    def log_scores(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)  # (T, E)

    def forward(
        self, activated: Activated, token: Tensor, expert: Tensor, context: Context
    ) -> Tensor:
        num_tokens, num_experts = activated.logits.shape
        nobody = expert == num_experts  # (A,)
        order = torch.arange(len(token), device=token.device)
        rank = rank_in_token(-order, token, num_tokens)  # (A,): how many the token chose before
        chosen_as = order.new_full((num_tokens, num_experts + 1), num_experts)
        chosen_as[token, expert] = rank
        before = (chosen_as[token, :num_experts] < rank[:, None]) & ~nobody[:, None]  # (A, E)
        left = activated.logits[token].masked_fill(before, -torch.inf)  # (A, E)
        here = expert.clamp(max=num_experts - 1)[:, None]
        near = candidates(left.detach(), self.eps).scatter(1, here, True)
        probability = left.masked_fill(~near, -torch.inf).softmax(-1)  # (A, E)
        p = probability.gather(1, here).squeeze(1)  # (A,)
        full = p >= probability.amax(-1)  # the likeliest
        if self.training:
            drawn = context.drawn("weigh", num_experts)[token, here.squeeze(1)]  # (A,)
            full = full | (drawn > 0.75)
            p = torch.where(full, p, p - 2 / 3 * p.detach())
        return p.masked_fill(nobody, 0) * self.scale
