"""A dense feed-forward network beside coarse experts, each correcting the other.

    y = FFN(x) + sum over the chosen experts of g_i FFN_i(x)

The residual part of PR-MoE (Rajbhandari et al. 2022, arXiv 2201.05596, section 4.1.1: a fixed MLP and one expert) and
the dense-MoE hybrid of Snowflake Arctic (2024: 10B dense beside 128 x 3.66B). Arctic's routed branch reads the input of
the attention, so that its exchange hides behind the attention; here both branches read the same x.
"""

from torch import Tensor

from app.registry import register, require
from experts.contract import FeedForward, Routed


@register("experts")
class Residual(Routed):
    """Coarse experts beside a dense network that every token sees.

    Args:
        num_experts: E, routed experts.
        top_k: K, routed experts per token; in 1..num_experts.
        hidden_dim: F, width of a routed expert; at least 1.
        dense_dim: width of the dense network; at least 0, 0: none.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, dim: int, *, num_experts: int, top_k: int, hidden_dim: int, dense_dim: int) -> None:
        require("dense_dim", dense_dim, dense_dim >= 0, "must be at least 0")
        super().__init__(dim, num_experts, top_k, hidden_dim)
        self.common = FeedForward(dim, dense_dim) if dense_dim else None

    def shared(self, x: Tensor) -> Tensor | None:
        return None if self.common is None else self.common(x)  # (T, D)
