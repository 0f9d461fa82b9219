"""Softmax gate: scores = softmax(logits) over all experts.

`normalize: false` is "softmax, then select" (DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066, eq.
9-10; Switch, arXiv 2101.03961, eq. 2). `normalize: true` divides by the sum over the selected,
which equals "select, then softmax over the selected" (Mixtral, arXiv 2401.04088, section 2.1;
GShard, arXiv 2006.16668, algorithm 1).
"""

from torch import Tensor

from app.registry import register
from routers.contract import Weigh


@register("weigh")
class Softmax(Weigh):
    """Weighs by the softmax over all experts: the scores of a token sum to 1.

    Args:
        normalize: whether the gates of a token are divided by their sum.
        scale: factor on every gate; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)  # (T, E)

    def log_scores(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)  # (T, E)
