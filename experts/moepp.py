"""MoE++: experts that cost nothing share the pool with feed-forward ones, so that easy tokens take
less computation.

    feed-forward  FFN_e(x)        zero  0        copy  x
    constant      a_1 x + a_2 v_e,   [a_1, a_2] = softmax(W_e x)

Jin et al. 2024, arXiv 2410.07348, section 3.1, eq. 3-5. The pool is ordered as above; v starts from
N(0, 1), as in the released code. A zero expert takes no share of a normalised gate, so the others'
sum to 1 (only zero experts: the null experts of AdaMoE, Zeng et al. 2024, arXiv 2406.13233). The
paper's scores take those of the layer below (`router/score=residual`), and its balance loss weighs
the two kinds of experts (`balance=heterogeneous`): parts of the router, not of the layout. The
released code also doubles the experts' input (times K), which is left out.
"""

import torch
from torch import Tensor, nn

from app.registry import register, require
from experts.contract import Routed, require_pool, row_expert, uniform


@register("experts")
class MoEPlusPlus(Routed):
    """Feed-forward experts and three kinds of cheap ones in one pool.

    Args:
        num_ffn: feed-forward experts; at least 1.
        num_zero: experts that return 0; at least 0.
        num_copy: experts that return their input; at least 0.
        num_constant: experts that return a mix of their input and a learned vector; at least 0.
        top_k: K, experts per token, of the whole pool.
        hidden_dim: F, width of a feed-forward expert; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_ffn: int,
        num_zero: int,
        num_copy: int,
        num_constant: int,
        top_k: int,
        hidden_dim: int,
    ) -> None:
        for name, number in (
            ("num_zero", num_zero),
            ("num_copy", num_copy),
            ("num_constant", num_constant),
        ):
            require(name, number, number >= 0, "must be at least 0")
        require("num_ffn", num_ffn, num_ffn >= 1, "must be at least 1")
        pool = num_ffn + num_zero + num_copy + num_constant
        require_pool(pool, top_k)
        super().__init__(dim, num_ffn, 1, hidden_dim)
        self.num_experts = pool
        self.top_k = top_k
        self.free = tuple(range(num_ffn, pool))
        self.null = tuple(range(num_ffn, num_ffn + num_zero))
        self.num_ffn = num_ffn
        self.num_constant = num_constant
        self.first_copy = num_ffn + num_zero
        self.constant = nn.Parameter(torch.randn(num_constant, dim)) if num_constant else None  # v
        self.mix = uniform(num_constant, 2, dim, inputs=dim) if num_constant else None  # W

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        expert = row_expert(x, ends)  # (A,)
        first_constant = self.num_experts - self.num_constant
        copied = (expert >= self.first_copy) & (expert < first_constant)
        # (A, D), 0 where no feed-forward expert works
        y = self.routed(x, ends[: self.num_ffn]) + x * copied[:, None]
        if self.constant is None or self.mix is None:
            return y
        index = (expert - first_constant).clamp(0, self.num_constant - 1)
        share = torch.einsum("ad,ncd->anc", x, self.mix.to(x.dtype)).softmax(-1)  # (A, N, 2)
        # (A, 1)
        own, learned = share[torch.arange(len(x), device=x.device), index].unsqueeze(-1).unbind(1)
        constant = own * x + learned * self.constant.to(x.dtype)[index]
        is_constant = (expert >= first_constant) & (expert < self.num_experts)
        return y + constant.masked_fill(~is_constant[:, None], 0)

    def settled(self) -> list[nn.Parameter]:
        return super().settled() + ([] if self.constant is None else [self.constant])

    def expert_params(self) -> list[int]:
        zero_and_copy = [0] * (self.num_experts - self.num_constant - self.num_ffn)
        constant = [] if self.mix is None else [3 * self.mix.size(-1)] * self.num_constant
        return self.routed.params() + zero_and_copy + constant
