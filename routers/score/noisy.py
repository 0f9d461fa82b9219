"""Noisy linear score: in training every logit gets Gaussian noise whose width is learned.

    logits = x Wg + N(0, 1) * std,   std = softplus(x Wn) + min_std      in training
    logits = x Wg                                                       in evaluation

Shazeer et al. 2017, arXiv 1701.06538, eq. 4 (`min_std: 0`; tensor2tensor's code adds 0.01). Both
matrices start at zero, as in appendix A: no signal and some noise, so the load starts even.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Noisy(Score):
    """Scores linearly, in training with Gaussian noise of a learned width.

    Args:
        min_std: added to the width of the noise; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    noisy = True

    def __init__(self, sizes: Sizes, *, min_std: float) -> None:
        super().__init__()
        require("min_std", min_std, min_std >= 0, "must not be negative")
        self.min_std = min_std
        self.proj = nn.Linear(sizes.dim, sizes.num_experts, bias=False)  # Wg
        self.noise = nn.Linear(sizes.dim, sizes.num_experts, bias=False)  # Wn
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.noise.weight)

    def forward(self, x: Tensor, context: Context) -> Scored:
        clean = self.proj(x)  # (T, E)
        if not self.training:
            return Scored(clean)
        std = softplus(self.noise(x)) + self.min_std  # (T, E)
        draws = context.drawn("score", clean.size(1), torch.randn)
        return Scored(clean + draws * std, None, clean, std)

    def directions(self) -> Tensor:
        return self.proj.weight  # (E, D)
