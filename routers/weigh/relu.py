"""Raw gate: scores = max(logits, 0), an expert without a positive logit has weight 0.

ReMoE (Wang et al. 2024, arXiv 2412.14711, section 3.1), there with the selection `positive` and the
balance `relu_lambda`. With a selection of fixed k an expert below 0 is computed and weighed by 0:
no gradient reaches its logit.
"""

from torch import Tensor

from app.registry import register
from routers.contract import Weigh


@register("weigh")
class ReLU(Weigh):
    """Weighs by the positive part of the logit: scores are not negative and not bounded.

    Args:
        normalize: whether the gates of a token are divided by their sum.
        scale: factor on every gate; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def scores(self, logits: Tensor) -> Tensor:
        return logits.relu()  # (T, E)
