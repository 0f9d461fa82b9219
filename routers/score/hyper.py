"""HyperRouter: the router's weights come out of a fixed random network, whose input is all that is
learned.

    [W, b] = relu(z A1 + a1) A2 + a2,   z (D,) learned, A and a never trained
    logits = x W + b

Do et al. 2023, arXiv 2312.07035, section 3; released code: D -> 256 -> E (D + 1), one network and
one z for each layer. There the fixed network is merely initialised; here it is drawn from `seed`
and kept in the state as a buffer.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes
from routers.frozen import frozen


@register("score")
class Hyper(Score):
    """Generates a linear router by a fixed random network from a learned embedding.

    Args:
        hidden_dim: width of the fixed network; at least 1.
        seed: of the fixed network.

    Raises:
        ValueError: a knob is out of its range.
    """

    inner: Tensor
    outer: Tensor

    def __init__(self, sizes: Sizes, *, hidden_dim: int, seed: int) -> None:
        super().__init__()
        require("hidden_dim", hidden_dim, hidden_dim >= 1, "must be at least 1")
        self.num_experts = sizes.num_experts
        self.embedding = nn.Parameter(torch.randn(sizes.dim))  # z
        generator = torch.Generator().manual_seed(seed * 1_000 + sizes.layer)
        width = sizes.num_experts * (sizes.dim + 1)
        # (H, D + 1), biases last
        self.register_buffer("inner", frozen(hidden_dim, sizes.dim, generator))
        self.register_buffer("outer", frozen(width, hidden_dim, generator))  # (E * (D + 1), H + 1)

    def forward(self, x: Tensor, context: Context) -> Scored:
        weight = self._generate()  # (E, D + 1)
        return Scored(linear(x, weight[:, :-1], weight[:, -1]))  # (T, E)

    def directions(self) -> Tensor:
        return self._generate()[:, :-1]  # (E, D)

    def _generate(self) -> Tensor:
        hidden = linear(self.embedding, self.inner[:, :-1], self.inner[:, -1]).relu()  # (H,)
        return linear(hidden, self.outer[:, :-1], self.outer[:, -1]).view(self.num_experts, -1)
