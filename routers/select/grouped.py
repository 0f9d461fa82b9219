"""Grouped top-k: every token takes equally many experts from every group, so groups on different
devices work alike.

    split the E experts into M groups; take the k / M best of each

Tang et al. 2025 (Pangu Pro MoE, "MoGE"), arXiv 2505.21411, section 2: 8 of 64 experts, one from
each of 8 groups, after a softmax over all experts, gates not normalised. The released code also
multiplies them by a learned scale per expert, which is left out here. Groups are neighbouring
experts, as even as E allows.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class Grouped(Select):
    """Takes the best k / groups experts of every group, so that all devices work alike.

    Args:
        k: experts per token; in 1..num_experts.
        groups: that each give k / groups experts; divides k, or null: k groups.

    Raises:
        ValueError: a knob is out of its range.
    """

    k: int

    def __init__(self, sizes: Sizes, *, k: int, groups: int | None) -> None:
        super().__init__()
        require(
            "k",
            k,
            1 <= k <= sizes.num_experts,
            f"must be in 1..{sizes.num_experts}, the layout's routed experts",
        )
        groups = k if groups is None else groups
        require("groups", groups, groups >= 1 and k % groups == 0, f"must divide k={k}")
        self.k = k
        self.max_k = k
        self.share = k // groups
        self.sizes = [len(p) for p in torch.arange(sizes.num_experts).tensor_split(groups)]
        smallest = self.sizes[-1]
        require(
            "groups",
            groups,
            self.share <= smallest,
            f"each group gives {self.share} experts but has {smallest}",
        )

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        parts = zip(choice.split(self.sizes, dim=-1), starts, strict=True)
        picked = [
            start + part.topk(self.share, dim=-1, sorted=False).indices for part, start in parts
        ]
        expert = torch.cat(picked, dim=-1)  # (T, K)
        token = torch.arange(len(choice), device=choice.device).repeat_interleave(self.k)
        return token, expert.flatten()  # (T*K,), token-major
