"""Sampled top-k: in training the experts of a token are drawn, one after the other, among the
nearly best.

    left        the experts not yet chosen
    candidates  those of them with  (best - logit) / max(|logit|, best) <= 2 eps,   best the largest
                logit left
    training    the next expert is drawn from softmax(logits of the candidates);  evaluation: it is
                the best

GRIN (Liu et al. 2024, arXiv 2409.12136, section 2) as its released code has it, where k = 2; drawn
by Gumbel noise on the logits. With the weighing `sparsemixer` the router learns from what was drawn
and what was not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class SparseMixer(Select):
    """Takes k experts of every token, in training at random among the nearly best.

    Args:
        k: experts per token; in 1..num_experts.
        eps: half the relative distance from the best logit within which an expert is a candidate;
            at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    by = "logits"
    k: int

    def __init__(self, sizes: Sizes, *, k: int, eps: float) -> None:
        super().__init__()
        require(
            "k",
            k,
            1 <= k <= sizes.num_experts,
            f"must be in 1..{sizes.num_experts}, the layout's routed experts",
        )
        require("eps", eps, eps >= 0, "must not be negative")
        self.k = k
        self.max_k = k
        self.eps = eps

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        left = choice
        chosen = []
        for wait in self._waits(choice, context):
            drawn = left
            if wait is not None:
                # Gumbel noise: the argmax is a draw from the softmax over the candidates.
                rivals = left.masked_fill(~candidates(left, self.eps), -torch.inf)
                drawn = rivals - wait.log()
            expert = drawn.argmax(-1, keepdim=True)  # (T, 1)
            nobody = left.gather(1, expert) == -torch.inf
            chosen.append(expert.masked_fill(nobody, choice.size(1)))
            left = left.scatter(1, expert, -torch.inf)
        token = torch.arange(len(choice), device=choice.device).repeat_interleave(self.k)
        # (T*K,), token-major, in the order of the draws
        return token, torch.cat(chosen, 1).flatten()

    def _waits(self, choice: Tensor, context: Context) -> Sequence[Tensor | None]:
        """For each draw exponential variables (T, E), of which -log is Gumbel noise;
        None at evaluation.
        """
        if not self.training:
            return [None] * self.k
        uniform = context.drawn("select", self.k * choice.size(1))
        return (-torch.log1p(-uniform)).chunk(self.k, 1)


def candidates(logits: Tensor, eps: float) -> Tensor:
    """Which logits (..., E) lie within a relative distance of 2 eps from the largest:
    (..., E) bool.
    """
    best = logits.amax(-1, keepdim=True)
    return ~((best - logits) / logits.abs().clamp(min=best) > 2 * eps)  # not <=: 0 / 0 is near
