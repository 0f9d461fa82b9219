"""A dense feed-forward network beside coarse experts, each correcting the other.

    y = FFN(x) + sum over the chosen experts of g_i FFN_i(x)
    y = c_2 FFN(x) + c_1 sum over the chosen experts of g_i FFN_i(x),   c = softmax(x W + b),
        with `coefficient`

The residual part of PR-MoE (Rajbhandari et al. 2022, arXiv 2201.05596, section 4.1.1: a fixed MLP
and one expert) and the dense-MoE hybrid of Snowflake Arctic (2024: 10B dense beside 128 x 3.66B).
The learned coefficient is that of DeepSpeed's code (`use_residual`), which the paper does not
print. Arctic's routed branch reads the input of the attention, so that its exchange hides behind
the attention; here both branches read the same x.
"""

from torch import Tensor, nn

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
        coefficient: whether the two are mixed by learned weights that sum to 1 instead of added.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_experts: int,
        top_k: int,
        hidden_dim: int,
        dense_dim: int,
        coefficient: bool,
    ) -> None:
        require("dense_dim", dense_dim, dense_dim >= 0, "must be at least 0")
        super().__init__(dim, num_experts, top_k, hidden_dim)
        self.common = FeedForward(dim, dense_dim) if dense_dim else None
        self.common_mix = nn.Linear(dim, 2) if coefficient and dense_dim else None

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        return y if self.common_mix is None else self.common_mix(x).softmax(-1)[:, :1] * y  # (T, D)

    def shared(self, x: Tensor) -> Tensor | None:
        if self.common is None:
            return None
        y = self.common(x)  # (T, D)
        return y if self.common_mix is None else self.common_mix(x).softmax(-1)[:, 1:] * y
