"""Top-k: each token takes its k best experts.

Shazeer et al. 2017, arXiv 1701.06538, eq. 5; k=1 in Switch (arXiv 2101.03961), k=2 in GShard (arXiv
2006.16668).
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class TopK(Select):
    """Takes the k best experts of every token.

    Args:
        k: experts per token; in 1..num_experts.

    Raises:
        ValueError: a knob is out of its range.
    """

    k: int

    def __init__(self, sizes: Sizes, *, k: int) -> None:
        super().__init__()
        allowed = f"must be in 1..{sizes.num_experts}, the layout's routed experts"
        require("k", k, 1 <= k <= sizes.num_experts, allowed)
        self.k = self.max_k = k

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        expert = choice.topk(self.k, dim=-1).indices  # (T, K)
        token = torch.arange(len(choice), device=choice.device).repeat_interleave(self.k)
        return token, expert.flatten()  # (T*K,), token-major
