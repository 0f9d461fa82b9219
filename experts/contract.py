"""What a layout of experts promises: computing the rows that were routed to its experts, and what every token gets.

A layout owns the number of routed experts and how many of them a token takes. Letters as in `routers.contract`;
F is the width inside one expert.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.registry import require
from experts import grouped


class Experts(nn.Module):
    """Base of all layouts."""

    num_experts: int  # E, routed
    top_k: int  # K, routed experts per token

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Outputs (A, D) of rows x (A, D) sorted by expert; expert e owns rows ends[e-1] to ends[e] of ends (E,) int32.

        Rows after the last end belong to nobody; what comes back there is not used.
        """
        raise NotImplementedError

    def shared(self, x: Tensor) -> Tensor | None:
        """What every token (T, D) gets whatever the router says: (T, D), or None."""
        return None

    def expert_params(self) -> list[int]:
        """Number of parameters of each routed expert, E of them; the budget counts K times their mean as active."""
        return []


class FeedForward(nn.Module):
    """One SwiGLU feed-forward network, y = (silu(x W_gate) * x W_up) W_out (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.w_out = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w_in(x).chunk(2, dim=-1)
        return self.w_out(functional.silu(gate) * up)


class Stack(nn.Module):
    """E SwiGLU networks of one width, their weights stacked so that an idle expert still has a gradient."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(num_experts, dim, 2 * hidden_dim))
        self.w_out = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Outputs (A, D) of rows x (A, D) sorted by expert."""
        return grouped.swiglu(x, ends, self.w_in, self.w_out)


class Routed(Experts):
    """A layout whose routed experts all have one width; the base of most.

    Raises:
        ValueError: fewer than one expert, a width below 1, or more experts per token than there are.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int, hidden_dim: int) -> None:
        super().__init__()
        require("num_experts", num_experts, num_experts >= 1, "leaves no routed expert")
        require("top_k", top_k, 1 <= top_k <= num_experts, f"must be in 1..{num_experts}, the number of routed experts")
        require("hidden_dim", hidden_dim, hidden_dim >= 1, "must be at least 1")
        self.num_experts, self.top_k, self.hidden_dim = num_experts, top_k, hidden_dim
        self.routed = Stack(num_experts, dim, hidden_dim)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.routed(x, ends)

    def expert_params(self) -> list[int]:
        each = sum(p[0].numel() for p in self.routed.parameters())
        return [each] * self.num_experts


def segment(hidden_dim: int, segments: int) -> int:
    """The width of one of `segments` equal parts of an expert.

    Raises:
        ValueError: the width does not divide.
    """
    require("segments", segments, segments >= 1 and hidden_dim % segments == 0, f"must divide hidden_dim={hidden_dim}")
    return hidden_dim // segments
