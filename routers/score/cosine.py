"""Cosine score: the angle between a token and an expert's embedding, sharpened by a learned
temperature.

    logits_e = cos(P x, e_e) / tau,   tau learned, never below `min_tau`
    logits_e = P x . e_e / |e_e|      as in the code that RMoE's table was run with

Chi et al. 2022 (X-MoE), arXiv 2204.09179, section 4: the projection to a small width and the sphere
keep the tokens of one expert from collapsing into one direction. Without the projection (`proj_dim:
null`) it is the baseline "CosineMoE" of RMoE (arXiv 2408.06793, table 1). Both sides are
normalised, as printed; the CompeteSMoE code that RMoE's enwik8 and WikiText-103 runs were made in
normalises the embeddings only and has no temperature (`normalize_input: false`, `tau: null`).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes

# a token shorter than this counts as having no direction
EPS = 1e-6


@register("score")
class Cosine(Score):
    """Scores by the angle between a token and an expert's embedding, over a learned temperature.

    Args:
        proj_dim: P, width in which the angle is taken; at least 1, or null: the model's, without a
            projection.
        normalize_input: whether a token counts by its direction alone.
        tau: first value of the temperature; null: none.
        min_tau: below which the temperature never acts; above 0 and at most `tau`.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        proj_dim: int | None,
        normalize_input: bool,
        tau: float | None,
        min_tau: float,
    ) -> None:
        super().__init__()
        require(
            "proj_dim", proj_dim, proj_dim is None or proj_dim >= 1, "must be null or at least 1"
        )
        require(
            "min_tau",
            min_tau,
            0 < min_tau <= (tau or min_tau),
            f"must be in 0..{tau}, tau, and not 0",
        )
        width = sizes.dim if proj_dim is None else proj_dim
        self.proj = nn.Linear(sizes.dim, width, bias=False) if proj_dim else nn.Identity()
        self.embedding = nn.Parameter(torch.randn(sizes.num_experts, width) * width**-0.5)
        # FSDP2 splits no scalar
        self.tau = None if tau is None else nn.Parameter(torch.tensor([tau]))
        self.normalize_input = normalize_input
        self.min_tau = min_tau

    def forward(self, x: Tensor, context: Context) -> Scored:
        inner = self.proj(x)  # (T, P)
        inner = normalize(inner, dim=-1, eps=EPS) if self.normalize_input else inner
        logits = linear(inner, normalize(self.embedding, dim=-1, eps=EPS))  # (T, E)
        return Scored(logits if self.tau is None else logits / self.tau.clamp_min(self.min_tau))

    def directions(self) -> Tensor:
        return self.embedding  # (E, P)
