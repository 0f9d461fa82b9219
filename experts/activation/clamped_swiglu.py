"""Clamped SwiGLU: neither half may grow beyond a limit, so that no outlier leaves the range of a
small float.

    g = min(gate, limit)      u = clip(up, -limit, limit)      g sigmoid(alpha g) (u + shift)

DeepSeek-V4 (arXiv 2606.19348) with limit 10, alpha 1 and no shift; gpt-oss (OpenAI 2025, arXiv
2508.10925) with limit 7, alpha 1.702, a shift of 1, and biases in both projections. Both as their
released code has it.
"""

from torch import Tensor

from app.registry import register, require
from experts.activation.contract import Activation


@register("activation")
class ClampedSwiGLU(Activation):
    """Multiplies one half by a gated other half, both clamped.

    Args:
        limit: of both halves; above 0.
        alpha: sharpness of the gate; above 0. 1: SiLU.
        shift: added to the half that is not gated.
        bias: whether both projections have biases, 0 at the start.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, *, limit: float, alpha: float, shift: float, bias: bool) -> None:
        super().__init__()
        require("limit", limit, limit > 0, "must be positive")
        require("alpha", alpha, alpha > 0, "must be positive")
        self.limit = limit
        self.alpha = alpha
        self.shift = shift
        self.bias = bias

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        gate = gate.clamp(max=self.limit)
        up = up.clamp(-self.limit, self.limit)
        return gate * (self.alpha * gate).sigmoid() * (up + self.shift)  # (R, F)
