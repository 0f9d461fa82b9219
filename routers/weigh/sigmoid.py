"""Sigmoid gate: scores = sigmoid(logits), each expert judged alone.

DeepSeek-V3, arXiv 2412.19437, eq. 13-15 (`normalize: true`, `scale: 2.5`); with `normalize: false`
and one expert the gate of BASE layers (arXiv 2103.16716).
"""

from torch import Tensor
from torch.nn import functional

from app.registry import register
from routers.contract import Weigh


@register("weigh")
class Sigmoid(Weigh):
    """Weighs each expert alone: scores lie in 0..1 and have no fixed sum.

    Args:
        normalize: whether the gates of a token are divided by their sum.
        scale: factor on every gate; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()  # (T, E)

    def log_scores(self, logits: Tensor) -> Tensor:
        return functional.logsigmoid(logits)  # (T, E)
