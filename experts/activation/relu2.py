"""Squared ReLU: max(x, 0)^2, without a gate (So et al.
2021, arXiv 2109.08668); the experts of Nemotron-H.
"""

from torch import Tensor

from app.registry import register
from experts.activation.contract import Activation


@register("activation")
class ReLU2(Activation):
    """Squares what is positive; the experts have two matrices instead of three."""

    columns = 1

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.relu().square()  # (R, F)
