"""Random score: a linear router that is never trained.

    logits = x W,   W drawn once from (seed, layer), uniform in +-1/sqrt(D)

The router of SMoE-Dropout (Chen et al. 2023, arXiv 2303.01610, section 3.1; there k also grows
during training) and of RMoE's baseline "RandomSMoE" (arXiv 2408.06793, table 1). THOR (arXiv
2110.04260) instead draws experts anew for each input.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from app.registry import register
from routers.contract import Context, Score, Scored, Sizes
from routers.frozen import frozen


@register("score")
class Random(Score):
    """Scores by a linear router that is drawn once and never trained.

    Args:
        seed: of the weights; two layers differ, too.
    """

    weight: Tensor

    def __init__(self, sizes: Sizes, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed * 1_000 + sizes.layer)
        # (E, D)
        self.register_buffer(
            "weight", frozen(sizes.num_experts, sizes.dim, generator)[:, :-1].clone()
        )

    def forward(self, x: Tensor, context: Context) -> Scored:
        return Scored(linear(x, self.weight))  # (T, E)
