"""Quantile balancing: the bias that would have given every expert its share of the step's tokens.

    alpha_t = (k+1)-th largest of s_t + b
    r_(t,i) = alpha_t - s_(t,i), the bias that i needs to win token t
    b_i <- the K/E-quantile over t of r_(.,i), minus the mean over i;    choose the k best of s + b

One dual step of the balanced assignment problem (Su 2026, kexue.fm/archives/11619, with beta = -b;
Kimi K3 report, section 2.3.3). k is the token's number of assignments and K its mean. Quantiles of
a whole step are read from a histogram over [min b - span, max b + span], which holds every r if the
scores lie in 0..span; it adds up over micro-batches and ranks. The bias is that of earlier steps,
so nothing looks ahead. `memory` (Megatron's `ema`) keeps a share of the old bias.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.assignments import count, experts_per_token
from routers.contract import Balance, Routing, Sizes


@register("balance")
class Quantile(Balance):
    """Steers the choice by the bias that would have made the last step's load even.

    Args:
        bins: of the histogram of an expert; at least 2.
        span: largest score; above 0. Softmax scores of many experts need less, for finer bins.
        memory: share of the old bias in the new one; in 0..1, 1 excluded.

    Raises:
        ValueError: a knob is out of its range.
    """

    bias: Tensor

    def __init__(self, sizes: Sizes, *, bins: int, span: float, memory: float) -> None:
        super().__init__()
        require("bins", bins, bins >= 2, "must be at least 2")
        require("span", span, span > 0, "must be positive")
        require("memory", memory, 0 <= memory < 1, "must be in 0..1, 1 excluded")
        self.bins = bins
        self.span = span
        self.memory = memory
        self.register_buffer("bias", torch.zeros(sizes.num_layers, sizes.num_experts))

    def offset(self) -> Tensor:
        return self.bias

    @torch.no_grad()
    def observe(self, routings: Sequence[Routing]) -> Tensor:
        """Counts (L, E, bins + 1): the histogram of r, and the load in the last column."""
        return torch.stack([self._count(r, self.bias[layer]) for layer, r in enumerate(routings)])

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        histogram = total[..., :-1]  # (L, E, bins)
        load = total[..., -1]  # (L, E)

        # The bin in which the K/E-quantile of an expert lies.
        target = load.mean(-1)[:, None, None].expand(*load.shape, 1)  # K/E of the tokens
        below = histogram.cumsum(-1)
        index = (below < target).sum(-1, keepdim=True).clamp(max=self.bins - 1)  # (L, E, 1)

        # Inside of the bin, the tokens are taken to lie evenly.
        inside = histogram.gather(-1, index)
        part = (target - below.gather(-1, index) + inside) / inside.clamp_min(1)
        low, width = self._range(self.bias)  # (L, 1)
        bias = low + width * (index + part.clamp(0, 1)).squeeze(-1)  # (L, E)
        bias = bias - bias.mean(-1, keepdim=True)

        # A layer without an assignment has learned nothing.
        has_load = load.sum(-1, keepdim=True) > 0
        self.bias.copy_(torch.where(has_load, bias.lerp(self.bias, self.memory), self.bias))

    def _count(self, routing: Routing, bias: Tensor) -> Tensor:
        num_experts = len(bias)
        # alpha: the largest of the scores that were not chosen, with their bias.
        forbidden = routing.logits == -torch.inf
        choice = (routing.scores + bias).masked_fill(forbidden, -torch.inf)  # (T, E)
        ordered = choice.sort(-1, descending=True).values
        k = experts_per_token(routing)[:, None]  # (T, 1)
        alpha = ordered.gather(1, k.clamp(max=num_experts - 1))

        # The bin of r = alpha - s, as one number with the expert.
        low, width = self._range(bias)
        bins = ((alpha - routing.scores - low) / width).clamp(0, self.bins - 1).long()  # (T, E)
        first_bin = torch.arange(num_experts, device=bias.device) * (self.bins + 1)
        index = first_bin + bins
        is_real = routing.valid.view(-1, 1).expand_as(index).float()
        counts = torch.zeros(num_experts * (self.bins + 1), device=bias.device)
        counts.scatter_add_(0, index.flatten(), is_real.flatten())
        counts = counts.view(num_experts, -1)  # (E, bins + 1)
        counts[:, -1] = count(routing.expert, num_experts)
        return counts

    def _range(self, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Lower end and width of the first bin (..., 1)."""
        low = bias.amin(-1, keepdim=True) - self.span
        high = bias.amax(-1, keepdim=True) + self.span
        return low, (high - low) / self.bins
