"""RMoE's layerwise recurrent router: a GRU that runs over the *layers* of one token carries the earlier routing up.

    x'_l = Proj_l(x_l)            per layer, D -> P, no bias
    h_l  = GRU(x'_l, h_(l-1))     one cell for all layers, h = 0 below the first MoE layer
    logits = h_l G_l              per layer, P -> E, no bias

Qiu et al. 2024, arXiv 2408.06793, section 3.2. The recurrence is over depth, never over the sequence, so decoding needs
no further cache, and no gradient is cut (Table 5: detaching h is worse than no recurrence). The second W_h of the
printed eq. 3 is a misprint; the released code is the usual GRU cell with two bias vectors, which is torch's.
"""

from torch import Tensor, nn

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class GRU(Score):
    """Raises ValueError if `state_dim` (P; the paper uses 128) is below 1."""

    def __init__(self, sizes: Sizes, *, state_dim: int) -> None:
        super().__init__()
        require("state_dim", state_dim, state_dim >= 1, "must be at least 1")
        self.state_dim = state_dim
        self.proj = nn.Linear(sizes.dim, state_dim, bias=False)
        self.head = nn.Linear(state_dim, sizes.num_experts, bias=False)

    def shared(self) -> nn.Module:
        return nn.GRUCell(self.state_dim, self.state_dim)

    def forward(self, x: Tensor, context: Context) -> Scored:
        assert context.shared is not None, "the model passes the cell in context.shared"
        below = x.new_zeros(len(x), self.state_dim) if context.state is None else context.state
        state = context.shared(self.proj(x), below)  # (T, P)
        return Scored(self.head(state), state)  # (T, E), (T, P)

    def directions(self) -> Tensor:
        return self.head.weight  # (E, P)
