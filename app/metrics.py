"""How good is the language model, and how even is the load of its experts?"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from routers.contract import Routing, load


class LanguageMetric(Metric):
    """Sums of nats, target tokens and text bytes per domain, over all ranks.

    A separator's nats count and its bytes do not, so bits per byte compares any two tokenizers.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor

    def __init__(self, domains: list[str]) -> None:
        super().__init__()
        self.domains = domains
        for name in ("nats", "tokens", "bytes"):
            self.add_state(name, torch.zeros(len(domains), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, targets: Tensor, num_bytes: Tensor, domain: Tensor) -> None:
        """Adds one batch.

        Args:
            nll: (B, S) nats of the targets, 0 where there is none.
            targets: (B, S) int64, negative where nothing is predicted.
            num_bytes: (B, S) UTF-8 bytes of the target tokens.
            domain: (B, S) int64 in 0..number of domains - 1.
        """
        real = targets >= 0
        for state, values in ((self.nats, nll), (self.tokens, real), (self.bytes, num_bytes * real)):
            state.scatter_add_(0, domain.flatten(), values.flatten().to(state.dtype))

    def compute(self) -> dict[str, Tensor]:
        """`nats` per token, `ppl`, `bpb` (unweighted mean over the domains that occurred) and `bpb_DOMAIN`."""
        nats = self.nats.sum() / self.tokens.sum()
        bpb = self.nats / self.bytes / math.log(2)
        seen = self.bytes > 0
        named = {f"bpb_{name}": bpb[i] for i, name in enumerate(self.domains) if seen[i]}
        return {"nats": nats, "ppl": nats.exp(), "bpb": bpb[seen].mean(), **named}


class LoadMetric(Metric):
    """Assignments per MoE layer and expert, before the drop and without padding, over all ranks."""

    full_state_update = False
    load: Tensor

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__()
        self.add_state("load", torch.zeros(num_layers, num_experts, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, routings: Sequence[Routing]) -> None:
        """Adds one forward pass."""
        if routings:
            self.load += load(routings)

    def compute(self) -> Tensor:
        """Load (L, E)."""
        return self.load


def max_violation(load: Tensor) -> Tensor:
    """MaxVio per layer (L,) of load (L, E): largest load over mean load, minus 1 (arXiv 2408.15664, section 4.1)."""
    return load.amax(-1) / load.mean(-1).clamp_min(1e-9) - 1


def dead_experts(load: Tensor) -> Tensor:
    """How many experts of each layer (L,) got nothing, of load (L, E)."""
    return (load == 0).sum(-1)
