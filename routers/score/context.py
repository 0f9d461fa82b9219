"""One mixture for all layers: what one layer scores is the logits of every layer above it.

    logits = W_3 relu(W_2 relu(W_1 x + b_1) + b_2) + b_3,   at one layer; handed up from there

PSEC's context-aware composition (Liu et al. 2025, arXiv 2502.05932, section 4): one alpha per state
from a network of two hidden layers of 256, unbounded with the weighing `identity`. Its state is an
observation; here it is the token as layer `at` sees it, which is the normed embedding in a first
layer that has skills on its attention, so no later token is looked at. The logits of the layers
below are 0: there nothing acts where the gate is the logit itself. At the start the weights of the
last layer are a hundredth of the usual and its bias is 1/E: nearly the same share of each expert.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes

# of the usual weights of the last layer, at the start
SMALL = 0.01


@register("score")
class ContextAware(Score):
    """Scores a token once, for all layers; the state is the logits, of width E.

    Args:
        at: the MoE layer, from 0, that scores; in 0..number of MoE layers - 1.
        hidden_dims: widths of the hidden ReLU layers; none: linear.

    Raises:
        ValueError: a knob is out of its range.
    """

    carries = True

    def __init__(self, sizes: Sizes, *, at: int, hidden_dims: list[int]) -> None:
        super().__init__()
        require(
            "at",
            at,
            0 <= at < max(1, sizes.num_layers),
            f"must be a MoE layer, 0..{sizes.num_layers - 1}",
        )
        require(
            "hidden_dims",
            hidden_dims,
            all(width >= 1 for width in hidden_dims),
            "must be at least 1 each",
        )
        self.num_experts = sizes.num_experts
        self.below = sizes.layer < at
        self.net = (
            _network([sizes.dim, *hidden_dims], sizes.num_experts) if sizes.layer == at else None
        )

    def forward(self, x: Tensor, context: Context) -> Scored:
        if self.below:
            return Scored(x.new_zeros(len(x), self.num_experts))
        logits = context.state if self.net is None else self.net(x)  # (T, E)
        assert logits is not None, "the model passes the logits of the layer below"
        return Scored(logits, logits)


def _network(widths: list[int], num_experts: int) -> nn.Sequential:
    """The score of one layer."""
    last = nn.Linear(widths[-1], num_experts)
    with torch.no_grad():
        last.weight.mul_(SMALL)
        last.bias.fill_(1 / num_experts)
    hidden = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
    return nn.Sequential(*hidden, last)
