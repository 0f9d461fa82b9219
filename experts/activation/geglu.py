"""GEGLU: gelu(gate) * up, both halves of one projection (Shazeer 2020, arXiv 2002.05202)."""

from torch import Tensor
from torch.nn import functional

from app.registry import register
from experts.activation.contract import Activation


@register("activation")
class GEGLU(Activation):
    """Multiplies one half by the GELU of the other."""

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        return functional.gelu(gate) * up  # (R, F)
