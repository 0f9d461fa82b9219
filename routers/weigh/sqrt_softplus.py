"""Square root of softplus: scores = sqrt(log(1 + exp(logits))), each expert judged alone and
without an upper bound.

DeepSeek-V4 (DeepSeek-AI 2026, arXiv 2606.19348), known here from its released implementations only;
the normalisation and a scale (1.5) are those of DeepSeek-V3 (arXiv 2412.19437, eq. 13-15).
"""

import torch
from torch import Tensor
from torch.nn import functional

from app.registry import register
from routers.contract import Weigh


@register("weigh")
class SqrtSoftplus(Weigh):
    """Weighs each expert alone, without an upper bound: about sqrt(logit) for large logits,
    exp(logit / 2) for small ones.

    Args:
        normalize: whether the gates of a token are divided by their sum.
        scale: factor on every gate; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def scores(self, logits: Tensor) -> Tensor:
        return self.log_scores(logits).exp()  # (T, E): the root itself has an infinite slope at 0

    def log_scores(self, logits: Tensor) -> Tensor:
        softplus = functional.softplus(logits.clamp_min(-20))
        # (T, E); softplus(x) is exp(x) far below 0
        return torch.where(logits > -20, softplus.log(), logits) / 2
