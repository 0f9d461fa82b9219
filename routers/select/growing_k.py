"""Growing top-k: each token takes its k_t best experts, and k_t grows in the course of the
training.

    k_t = start + floor((k - start) min(1, t / steps)) at optimizer step t of a training;
        k in evaluation

SMoE-Dropout (Chen et al. 2023, arXiv 2303.01610, section 3.2), there with a router that is never
trained. Its start, its end and the step of its end are unverified. Capacity counts k.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Context, Sizes
from routers.select.top_k import TopK


@register("select")
class GrowingK(TopK):
    """Takes the k best experts of every token, in training fewer at first.

    Args:
        k: experts per token in the end; in 1..num_experts.
        start: experts per token at the first step; in 1..k.
        steps: of the training after which it is k; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, k: int, start: int, steps: int) -> None:
        super().__init__(sizes, k=k)
        require("start", start, 1 <= start <= k, f"must be in 1..{k}, k")
        require("steps", steps, steps >= 1, "must be at least 1")
        self.start = start
        self.steps = steps

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        token, expert = super().forward(activated, choice, context)
        if not self.training:
            return token, expert
        now = self.start + (self.k - self.start) * min(context.step, self.steps) // self.steps
        # of the expert in its token, best first
        place = torch.arange(len(expert), device=expert.device) % self.k
        return token, expert.masked_fill(place >= now, choice.size(1))
