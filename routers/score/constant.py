"""One mixture for all tokens: the logits are a learned vector, the same in every layer.

    logits = a,   a in R^E

The fixed composition W = W_0 + sum_i alpha_i B_i A_i that PSEC begins with (Liu et al. 2025, arXiv
2502.05932, section 4), where alpha is the gate: with the weighing `identity`, at first the same
share of each expert. Its distance from a score that looks at the token is what the look is worth.
"""

import torch
from torch import Tensor, nn

from app.registry import register
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Constant(Score):
    """Scores every token alike; the state is the logits, of width E,
    handed up from the first layer.
    """

    carries = True

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        first = sizes.layer == 0
        shares = torch.full((sizes.num_experts,), 1 / sizes.num_experts)
        self.logits = nn.Parameter(shares) if first else None

    def forward(self, x: Tensor, context: Context) -> Scored:
        logits = context.state if self.logits is None else self.logits.expand(len(x), -1)  # (T, E)
        assert logits is not None, "the model passes the logits of the layer below"
        return Scored(logits, logits)
