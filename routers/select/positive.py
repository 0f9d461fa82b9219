"""Positive: each token takes every expert whose score is above zero, be it none or all.

    t takes e  iff  choice_(t,e) > 0

With ReLU scores this is ReMoE (Wang et al. 2024, arXiv 2412.14711, eq. 5), where a balance term drives the share of
positive scores; with an offset of -tau it is expert threshold routing (arXiv 2603.11535): t takes e iff its score is
above tau_e. How many assignments there are depends on the data: the host waits for the device once a layer.
"""

from torch import Tensor

from app.registry import register
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class Positive(Select):
    """Takes every expert whose score (with its offset) is positive; a token gets 0..E experts."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(self, activated: Activated, choice: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        token, expert = ((choice > 0) & context.valid.flatten()[:, None]).nonzero(as_tuple=True)
        return token, expert  # (A,), token-major
