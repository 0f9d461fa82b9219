"""Linear score: one learned direction per expert, logits = x W.

Shazeer et al. 2017, arXiv 1701.06538, eq. 2 (there before the noise); the score of nearly every MoE
since.
"""

from torch import Tensor, nn

from app.registry import register
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Linear(Score):
    """Scores by one learned direction per expert.

    Args:
        bias: whether every expert has a learned constant, as in the gates of Shazeer's code and of
            RMoE's enwik8 runs.
    """

    def __init__(self, sizes: Sizes, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(sizes.dim, sizes.num_experts, bias=bias)

    def forward(self, x: Tensor, context: Context) -> Scored:
        return Scored(self.proj(x))  # (T, E)

    def directions(self) -> Tensor:
        return self.proj.weight  # (E, D)
