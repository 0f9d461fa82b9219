"""Positive: each token takes every expert whose logit is above zero, be it none or all.

    t takes e  iff  logit_(t,e) + offset_e > 0

With ReLU scores this is ReMoE (Wang et al. 2024, arXiv 2412.14711, eq. 5): a score is positive
where its logit is. By itself it takes about half of the experts at first and any number later, so
it needs a balance term that holds it, as ReMoE's `relu_lambda` does. How many assignments there are
depends on the data: the host waits for the device once a layer.
"""

from torch import Tensor

from app.registry import register
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class Positive(Select):
    """Takes every expert whose logit (with its offset) is positive; a token gets 0..E experts."""

    by = "logits"
    limited = False

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        return above_zero(choice, context)


def above_zero(choice: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """The pairs of valid tokens whose choice (T, E) is positive:
    token (A,), expert (A,), token-major.
    """
    token, expert = ((choice > 0) & context.valid.flatten()[:, None]).nonzero(as_tuple=True)
    return token, expert
