"""Linear score whose input is jittered in training: exploration without a learned width.

    logits = (x * U(1 - eps, 1 + eps)) W      in training;   x W in evaluation

Fedus et al. 2021 (Switch), arXiv 2101.03961, section 2.4 and appendix C (there eps = 0.01). Only
the router sees the jitter; in the released code, too, the experts get x itself.
"""

from torch import Tensor

from app.registry import register, require
from routers.contract import Context, Scored, Sizes
from routers.score.linear import Linear


@register("score")
class Jitter(Linear):
    """Scores linearly, in training with an input that is jittered.

    Args:
        bias: whether every expert has a learned constant.
        eps: the input is multiplied by U(1 - eps, 1 + eps); in 0..1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, bias: bool, eps: float) -> None:
        super().__init__(sizes, bias=bias)
        require("eps", eps, 0 <= eps <= 1, "must be in 0..1")
        self.eps = eps

    def forward(self, x: Tensor, context: Context) -> Scored:
        if self.training:
            draws = context.drawn("score", x.size(1))  # (T, D)
            x = x * (1 + self.eps * (2 * draws - 1))
        return super().forward(x, context)
