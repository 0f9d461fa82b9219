"""SparseMixer-v2: the gate of the r-th choice is a softmax over what is left, its gradient that of a sampled choice.

    p_r  = softmax of the logits without the r-1 experts chosen before, at the chosen expert
    gate = m p_r  forward,  d gate = d p_r  backward;   m = 1 for the likeliest expert that is left, else 1/2

GRIN (Liu et al. 2024, arXiv 2409.12136, section 2), after SparseMixer (arXiv 2310.00811). Different here: m is the
mean of the released code's random 1 (with probability 1/4) or 1/3, so the weighing draws no noise; the code leaves
out experts whose logit lies more than a relative 2 epsilon below the best, here all that are left take part; and the
choice is sampled only if the score adds noise (for Gumbel noise that is the paper's), otherwise it is the likeliest
and m is 1.
"""

import torch
from torch import Tensor

from app.registry import register
from routers.assignments import assigned, rank_in_token
from routers.contract import Sizes, Weigh


@register("weigh")
class SparseMixer(Weigh):
    """Weighs each choice by a softmax over what is left, with the gradient of a sampled choice; never normalised.

    Args:
        scale: factor on every gate; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, scale: float) -> None:
        super().__init__(sizes, normalize=False, scale=scale)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)  # (T, E)

    def forward(self, scores: Tensor, token: Tensor, expert: Tensor) -> Tensor:
        num_tokens, num_experts = scores.shape
        score = assigned(scores, token, expert)  # (A,)
        rank = rank_in_token(score.masked_fill(expert == num_experts, -1), token, num_tokens).clamp(max=num_experts - 1)
        chosen = torch.zeros_like(scores).index_put((token, rank), score, accumulate=True)  # (T, E), by rank
        later = chosen.flip(-1).cumsum(-1).flip(-1)  # (T, E): of the choices from this rank on
        taken = torch.zeros(num_tokens, num_experts + 1, dtype=torch.bool, device=scores.device)
        taken[token, expert] = True
        never = scores.masked_fill(taken[:, :num_experts], 0)  # (T, E)
        p = score / (later[token, rank] + never.sum(-1)[token]).clamp_min(1e-20)  # (A,)
        best = score >= never.amax(-1)[token]  # by rank, no later choice is better
        return (p - torch.where(best, 0.0, 0.5 * p.detach())) * self.scale
