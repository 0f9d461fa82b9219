"""A shared expert behind a gate of its own, beside the routed ones: the layout of Qwen1.5-MoE and
Qwen2-MoE.

    y = sigmoid(x w) FFN_shared(x) + sum over the chosen experts of g_i FFN_i(x)

Yang et al. 2024, arXiv 2407.10671, section 2.2.2, which names shared and routed experts; the
sigmoid stands in the published modelling code only. The routed part is the coarse layout's; the
widths of both parts are free.
"""

from torch import Tensor, nn

from app.registry import register, require
from experts.contract import FeedForward, Routed


@register("experts")
class SharedGated(Routed):
    """Coarse experts beside a shared one behind a gate of its own.

    Args:
        num_experts: E, routed experts.
        top_k: K, routed experts per token; in 1..num_experts.
        hidden_dim: F, width of a routed expert; at least 1.
        shared_dim: width of the shared expert; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self, dim: int, *, num_experts: int, top_k: int, hidden_dim: int, shared_dim: int
    ) -> None:
        require(
            "shared_dim",
            shared_dim,
            shared_dim >= 1,
            "must be at least 1; without a shared expert choose coarse",
        )
        super().__init__(dim, num_experts, top_k, hidden_dim)
        self.common = FeedForward(dim, shared_dim)
        self.common_gate = nn.Linear(dim, 1, bias=False)

    def shared(self, x: Tensor) -> Tensor:
        return self.common_gate(x).sigmoid() * self.common(x)  # (T, D)
