"""SwiGLU: silu(gate) * up, both halves of one projection (Shazeer 2020, arXiv 2002.05202).

The activation of nearly every mixture of experts; routed experts compute it in a kernel of its own.
"""

from torch import Tensor
from torch.nn import functional

from app.registry import register
from experts import grouped
from experts.activation.contract import Activation


@register("activation")
class SwiGLU(Activation):
    """Multiplies one half by the SiLU of the other."""

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        return functional.silu(gate) * up  # (R, F)

    def fused(self, x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        return grouped.swiglu(x, ends, w_in, w_out)
