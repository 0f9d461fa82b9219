"""Cosine score: the angle between a token and an expert's embedding, sharpened by a learned temperature.

    logits_e = cos(P x, e_e) / tau,   tau learned, never below `min_tau`

Chi et al. 2022 (X-MoE), arXiv 2204.09179, section 4: the projection to a small width and the sphere keep the tokens of
one expert from collapsing into one direction. Without the projection (`proj_dim: null`) it is the baseline "CosineMoE"
of RMoE (arXiv 2408.06793, table 1). Both sides are normalised, as printed; released code normalises only embeddings.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes

EPS = 1e-6  # a token shorter than this counts as having no direction


@register("score")
class Cosine(Score):
    """Scores by the angle between a token and an expert's embedding, over a learned temperature.

    Args:
        proj_dim: P, width in which the angle is taken; at least 1, or null: the model's, without a projection.
        tau: first value of the temperature.
        min_tau: below which the temperature never acts; above 0 and at most `tau`.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, proj_dim: int | None, tau: float, min_tau: float) -> None:
        super().__init__()
        require("proj_dim", proj_dim, proj_dim is None or proj_dim >= 1, "must be null or at least 1")
        require("min_tau", min_tau, 0 < min_tau <= tau, f"must be in 0..{tau}, tau, and not 0")
        width = sizes.dim if proj_dim is None else proj_dim
        self.proj = nn.Linear(sizes.dim, width, bias=False) if proj_dim else nn.Identity()
        self.embedding = nn.Parameter(torch.randn(sizes.num_experts, width) * width**-0.5)
        self.tau = nn.Parameter(torch.tensor(tau))
        self.min_tau = min_tau

    def forward(self, x: Tensor, context: Context) -> Scored:
        cosine = linear(normalize(self.proj(x), dim=-1, eps=EPS), normalize(self.embedding, dim=-1, eps=EPS))
        return Scored(cosine / self.tau.clamp_min(self.min_tau))  # (T, E)

    def directions(self) -> Tensor:
        return self.embedding  # (E, P)
