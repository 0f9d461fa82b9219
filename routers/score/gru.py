"""RMoE's layerwise recurrent router: a GRU that runs over the *layers* of one token carries the
earlier routing up.

    x'_l = Proj_l(x_l)            per layer, D -> P, no bias
    h_l  = GRU(x'_l, h_(l-1))     one cell for all layers, h = 0 below the first MoE layer
    logits = h_l G_l              per layer, P -> E, no bias;
        plus residual * logits of the layer below

Qiu et al. 2024, arXiv 2408.06793, section 3.2. The recurrence is over depth, never over the
sequence, so decoding needs no further cache, and no gradient is cut (table 5: detaching h is worse
than no recurrence). The second W_h of the printed eq. 3 is a misprint; the released code is the
usual GRU cell with two bias vectors, which is torch's. The knobs are the paper's ablations: another
`cell` or a `shared_projection` (table 6), `stateless` (h = 0 in every layer, "NP", tables 4 and 5),
`detach` and `residual` ("r", table 5; that the logits are added, not the gates, is our reading).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes

Cell = Literal["gru", "rnn", "lstm"]
CELLS = {"gru": nn.GRUCell, "rnn": nn.RNNCell, "lstm": nn.LSTMCell}


class Recurrence(nn.Module):
    """What all layers share: the cell, and the projection where that is shared too."""

    def __init__(self, dim: int | None, state_dim: int, cell: Cell) -> None:
        super().__init__()
        self.proj = nn.Identity() if dim is None else nn.Linear(dim, state_dim, bias=False)
        self.cell = CELLS[cell](state_dim, state_dim)

    def forward(self, x: Tensor, below: Tensor | None) -> Tensor:
        """The state of this layer: h (T, P), or h and c (T, 2P) of an LSTM."""
        if not isinstance(self.cell, nn.LSTMCell):
            return self.cell(self.proj(x), below)
        return torch.cat(self.cell(self.proj(x), None if below is None else below.chunk(2, -1)), -1)


@register("score")
class GRU(Score):
    """Scores a recurrent state that runs over the layers; all layers share its cell.

    Args:
        state_dim: P, width of the state; at least 1 (128 in the paper).
        cell: `gru`, `rnn` or `lstm`.
        shared_projection: whether all layers share one projection D -> P.
        stateless: whether every layer starts at h = 0.
        detach: whether the gradient to the layers below is cut.
        residual: factor on the logits of the layer below, added to a layer's own; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    carries = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        state_dim: int,
        cell: Cell,
        shared_projection: bool,
        stateless: bool,
        detach: bool,
        residual: float,
    ) -> None:
        super().__init__()
        require("state_dim", state_dim, state_dim >= 1, "must be at least 1")
        require("residual", residual, residual >= 0, "must not be negative")
        self.dim = sizes.dim if shared_projection else None
        self.state_dim = state_dim
        self.cell = cell
        self.width = state_dim * (2 if cell == "lstm" else 1)
        self.stateless = stateless
        self.detach = detach
        self.residual = residual
        self.proj = (
            nn.Identity() if shared_projection else nn.Linear(sizes.dim, state_dim, bias=False)
        )
        self.head = nn.Linear(state_dim, sizes.num_experts, bias=False)

    def shared(self) -> nn.Module:
        return Recurrence(self.dim, self.state_dim, self.cell)

    def forward(self, x: Tensor, context: Context) -> Scored:
        assert context.shared is not None, "the model passes the cell in context.shared"
        below = (
            context.state.detach() if self.detach and context.state is not None else context.state
        )
        carried = None if below is None or self.stateless else below[:, : self.width]
        state = context.shared(self.proj(x), carried)  # (T, P), or (T, 2P) with an LSTM's c
        logits = self.head(state[:, : self.state_dim])  # (T, E)
        if self.residual and below is not None:
            logits = logits + self.residual * below[:, self.width :]
        return Scored(logits, torch.cat((state, logits), -1) if self.residual else state)

    def directions(self) -> Tensor:
        return self.head.weight  # (E, P)
