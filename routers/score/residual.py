"""MoE++'s gating residual: the logits of the MoE layer below, mapped by a learned matrix, are added
to a layer's own.

    logits_l = x_l W_l + logits_(l-1) M_l,   no such term in the first MoE layer
    logits_l = tanh(x_l V_l) W_l + logits_(l-1) M_l,   V: D -> hidden_per_expert * E,
        in the released code (8)

Jin et al. 2024, arXiv 2410.07348, section 3.3, where the own part is one matrix. The sum goes up,
not the own part alone. Its zero, copy and constant experts are a layout.
"""

from torch import Tensor, nn

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Residual(Score):
    """Scores a token and adds a map of the logits of the layer below; the state is the logits, of
    width E.

    Args:
        hidden_per_expert: units of a hidden tanh layer, for each expert; at least 0, 0: none.

    Raises:
        ValueError: a knob is out of its range.
    """

    carries = True

    def __init__(self, sizes: Sizes, *, hidden_per_expert: int) -> None:
        super().__init__()
        require(
            "hidden_per_expert", hidden_per_expert, hidden_per_expert >= 0, "must be at least 0"
        )
        width = hidden_per_expert * sizes.num_experts
        self.hidden = (
            nn.Sequential(nn.Linear(sizes.dim, width, bias=False), nn.Tanh())
            if width
            else nn.Identity()
        )
        self.proj = nn.Linear(width or sizes.dim, sizes.num_experts, bias=False)
        self.map = (
            nn.Linear(sizes.num_experts, sizes.num_experts, bias=False) if sizes.layer else None
        )

    def forward(self, x: Tensor, context: Context) -> Scored:
        logits = self.proj(self.hidden(x))  # (T, E)
        if self.map is not None:
            assert context.state is not None, "the model passes the logits of the MoE layer below"
            logits = logits + self.map(context.state)
        return Scored(logits, logits)

    def directions(self) -> Tensor:
        return self.proj.weight  # (E, D), or (E, hidden)
