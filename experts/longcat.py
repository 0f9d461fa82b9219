"""Zero-computation experts: N feed-forward experts and Z that return their input, K of all of them
for each token.

    E_e(x) = FFN_e(x) for e < N,   x for N <= e < N + Z

So the number of feed-forward experts that a token activates differs from token to token.
LongCat-Flash, Meituan 2025, arXiv 2509.01322, section 2.1, eq. 1. The paper holds their mean with a
PID controller on the bias of the feed-forward experts, which is a balance term, and runs the layer
beside a dense path (ScMoE), which is not built here.
"""

from torch import Tensor

from app.registry import register, require
from experts.contract import Routed, require_pool, row_expert


@register("experts")
class LongCat(Routed):
    """Feed-forward experts and experts that cost nothing in one pool.

    Args:
        num_ffn: N, feed-forward experts; at least 1.
        num_identity: Z, experts that return their input; at least 0.
        top_k: K, experts per token, of the whole pool.
        hidden_dim: F, width of a feed-forward expert; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self, dim: int, *, num_ffn: int, num_identity: int, top_k: int, hidden_dim: int
    ) -> None:
        require("num_ffn", num_ffn, num_ffn >= 1, "must be at least 1")
        require("num_identity", num_identity, num_identity >= 0, "must be at least 0")
        require_pool(num_ffn + num_identity, top_k)
        super().__init__(dim, num_ffn, 1, hidden_dim)
        self.num_ffn = num_ffn
        self.num_experts = num_ffn + num_identity
        self.top_k = top_k
        self.free = tuple(range(num_ffn, self.num_experts))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        expert = row_expert(x, ends)  # (A,)
        identity = (expert >= self.num_ffn) & (expert < self.num_experts)
        return self.routed(x, ends[: self.num_ffn]) + x.masked_fill(~identity[:, None], 0)  # (A, D)

    def expert_params(self) -> list[int]:
        return self.routed.params() + [0] * (self.num_experts - self.num_ffn)
