"""MLP score: a hidden layer between the token and the experts' directions.

    logits = act(x W1) W2,   D -> H -> E, no bias

The baseline "SMoE-MLP" that RMoE compares itself with (Qiu et al. 2024, arXiv 2408.06793, table 1);
H=256 gives its 0.75 M parameters. The activation is not stated there.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class MLP(Score):
    """Scores by a two-layer network without biases.

    Args:
        hidden_dim: H; at least 1.
        activation: of the hidden layer: `relu`, `gelu`, `silu` or `tanh`.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self, sizes: Sizes, *, hidden_dim: int, activation: Literal["relu", "gelu", "silu", "tanh"]
    ) -> None:
        super().__init__()
        require("hidden_dim", hidden_dim, hidden_dim >= 1, "must be at least 1")
        self.hidden = nn.Linear(sizes.dim, hidden_dim, bias=False)
        self.head = nn.Linear(hidden_dim, sizes.num_experts, bias=False)
        self.activation = getattr(functional, activation)

    def forward(self, x: Tensor, context: Context) -> Scored:
        return Scored(self.head(self.activation(self.hidden(x))))  # (T, E)

    def directions(self) -> Tensor:
        return self.head.weight  # (E, H)
