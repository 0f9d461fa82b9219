"""No activation: the gate is the logit, of either sign and without bound.

PSEC's alpha (Liu et al. 2025, arXiv 2502.05932, section 4), which may take a skill away from a
mixture.
"""

import torch
from torch import Tensor

from app.registry import register
from routers.contract import Sizes, Weigh


@register("weigh")
class Identity(Weigh):
    """Weighs by the logit itself; never normalised, as a sum of such gates may be 0.

    For the losses that look at probabilities, these are the softmax of the logits.

    Args:
        scale: factor on every gate; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    signed = True

    def __init__(self, sizes: Sizes, *, scale: float) -> None:
        super().__init__(sizes, normalize=False, scale=scale)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(logits == -torch.inf, 0)  # (T, E)

    def log_scores(self, logits: Tensor) -> Tensor:
        return logits  # (T, E)
