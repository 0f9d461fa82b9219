"""Linear score: one learned direction per expert, logits = x W.

Shazeer et al. 2017, arXiv 1701.06538, eq. 2 (there before the noise); the score of nearly every MoE since.
"""

from torch import Tensor, nn

from app.registry import register
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Linear(Score):
    """`bias` adds one constant per expert, as the gates of Shazeer's code and of RMoE's enwik8 runs do."""

    def __init__(self, sizes: Sizes, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(sizes.dim, sizes.num_experts, bias=bias)

    def forward(self, x: Tensor, context: Context) -> Scored:
        return Scored(self.proj(x))  # (T, E)

    def directions(self) -> Tensor:
        return self.proj.weight  # (E, D)
