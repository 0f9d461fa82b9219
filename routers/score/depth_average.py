"""ZAYA1's router: a small state that is averaged over the layers below, then scored by a
three-layer network.

    r_l = x_l W_l + b_l + gamma_l * r_(l-1)
        D -> P; gamma (P,) learned from 1; no such term in the first MoE layer
    logits = MLP_l(RMSNorm(r_l))
        P -> P -> P -> E with GELU; biases in all but the last layer

Zyphra 2025, arXiv 2511.17127, section on the router ("exponential depth averaging"). Biases, the
norm and the vector gamma are those of the released models' code; what goes up is r_l before the
norm. Its PID balancing is a balance term.
"""

import torch
from torch import Tensor, nn

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class DepthAverage(Score):
    """Scores a state that averages the tokens' projections over the layers below.

    Args:
        state_dim: P, width of the state; at least 1 (256 in ZAYA1).

    Raises:
        ValueError: a knob is out of its range.
    """

    carries = True

    def __init__(self, sizes: Sizes, *, state_dim: int) -> None:
        super().__init__()
        require("state_dim", state_dim, state_dim >= 1, "must be at least 1")
        self.proj = nn.Linear(sizes.dim, state_dim)
        self.gamma = nn.Parameter(torch.ones(state_dim)) if sizes.layer else None
        self.norm = nn.RMSNorm(state_dim, eps=1e-5)
        self.hidden = nn.Sequential(
            nn.Linear(state_dim, state_dim), nn.GELU(), nn.Linear(state_dim, state_dim), nn.GELU()
        )
        self.head = nn.Linear(state_dim, sizes.num_experts, bias=False)

    def forward(self, x: Tensor, context: Context) -> Scored:
        state = self.proj(x)  # (T, P)
        if self.gamma is not None:
            assert context.state is not None, "the model passes the state of the MoE layer below"
            state = state + self.gamma * context.state
        return Scored(self.head(self.hidden(self.norm(state))), state)  # (T, E), (T, P)

    def directions(self) -> Tensor:
        return self.head.weight  # (E, P)
