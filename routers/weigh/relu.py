"""Raw gate: scores = max(logits, 0), an expert without a positive logit has weight 0.

ReMoE (Wang et al. 2024, arXiv 2412.14711, section 3.1), there with the selection `positive` and the balance
`relu_lambda`. With a selection of fixed k an expert below 0 is computed and weighed by 0: no gradient reaches its
logit.
"""

from torch import Tensor

from app.registry import register
from routers.contract import Weigh


@register("weigh")
class ReLU(Weigh):
    """Scores are not negative and not bounded."""

    def scores(self, logits: Tensor) -> Tensor:
        return logits.relu()  # (T, E)
