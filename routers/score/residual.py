"""MoE++'s gating residual: the logits of the MoE layer below, mapped by a learned matrix, are added to a layer's own.

    logits_l = x_l W_l + logits_(l-1) M_l,   no such term in the first MoE layer

Jin et al. 2024, arXiv 2410.07348, section 3.3. The sum goes up, not the own part alone. The released code's own part is
a two-layer network (D -> 8E -> E, tanh) by default; the paper's is the matrix that stands here. Its zero, copy and
constant experts are a layout.
"""

from torch import Tensor, nn

from app.registry import register
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Residual(Score):
    """Scores linearly and adds a map of the logits of the layer below; the state is the logits, of width E."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.proj = nn.Linear(sizes.dim, sizes.num_experts, bias=False)
        self.map = nn.Linear(sizes.num_experts, sizes.num_experts, bias=False) if sizes.layer else None

    def forward(self, x: Tensor, context: Context) -> Scored:
        logits = self.proj(x)  # (T, E)
        if self.map is not None:
            assert context.state is not None, "the model passes the logits of the MoE layer below"
            logits = logits + self.map(context.state)
        return Scored(logits, logits)

    def directions(self) -> Tensor:
        return self.proj.weight  # (E, D)
