"""Experts in a narrower space: a token is projected down once, its experts work there, and their
sum is projected up.

    y = W_up sum over the chosen experts of g_i FFN_i(W_down x) + FFN_shared(x)

LatentMoE, 2026, arXiv 2601.18089: dispatch and expert weights shrink by D / Z, and what that saves
goes into more experts and a larger K at equal cost. The router and the shared expert see x in full
width. The experts are SwiGLU here.
"""

from torch import Tensor, nn

from app.registry import register, require
from experts.contract import FeedForward, Routed


@register("experts")
class Latent(Routed):
    """Experts that work in a narrower space than the model's, between one projection down and one
    up.

    Args:
        num_experts: E, routed experts.
        top_k: K, routed experts per token; in 1..num_experts.
        hidden_dim: F, width of a routed expert; at least 1.
        shrink: D / Z, the width of the model over that of their space; divides the former.
        shared_dim: width of a shared expert in the full space; at least 0, 0: none.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_experts: int,
        top_k: int,
        hidden_dim: int,
        shrink: int,
        shared_dim: int,
    ) -> None:
        require(
            "shrink",
            shrink,
            shrink >= 1 and dim % shrink == 0,
            f"must divide {dim}, the width of the model",
        )
        require("shared_dim", shared_dim, shared_dim >= 0, "must be at least 0")
        latent_dim = dim // shrink
        super().__init__(latent_dim, num_experts, top_k, hidden_dim)
        self.down = nn.Linear(dim, latent_dim, bias=False)
        self.up = nn.Linear(latent_dim, dim, bias=False)
        self.common = FeedForward(dim, shared_dim) if shared_dim else None

    def enter(self, x: Tensor) -> Tensor:
        return self.down(x)  # (T, Z)

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        return self.up(y)  # (T, D)

    def shared(self, x: Tensor) -> Tensor | None:
        return None if self.common is None else self.common(x)  # (T, D)
