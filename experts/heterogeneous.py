"""Experts of different widths: hard tokens can find a large expert, easy ones a small one.

    E_e = FFN of width F_e,   F_0 <= F_1 <= ...

HMoE, Wang et al. 2024, arXiv 2408.10681, section 3.1. The widths are sorted, and experts of one
width are one stack. HMoE's parameter penalty, which draws tokens to small experts, is a balance
term.
"""

from itertools import groupby

from torch import Tensor

from app.registry import register, require
from experts.contract import Experts, Stacks, require_pool


@register("experts")
class Heterogeneous(Experts):
    """Experts of different widths, K of them for each token.

    Args:
        hidden_dims: the width of every expert, at least 1; as many experts as entries.
        top_k: K, experts per token; in 1..number of experts.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, dim: int, *, hidden_dims: list[int], top_k: int) -> None:
        super().__init__()
        require(
            "hidden_dims",
            hidden_dims,
            bool(hidden_dims) and min(hidden_dims) >= 1,
            "must be widths of at least 1",
        )
        require_pool(len(hidden_dims), top_k)
        self.num_experts = len(hidden_dims)
        self.top_k = top_k
        self.routed = Stacks(
            dim, [(len(list(same)), width) for width, same in groupby(sorted(hidden_dims))]
        )

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.routed(x, ends)  # (A, D)

    def expert_params(self) -> list[int]:
        return self.routed.params()
