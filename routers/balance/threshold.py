"""Threshold: each expert serves the tokens whose logit exceeds a running quantile, so that it gets
its share over time.

    q_i = the logit that a share K/E of the tokens exceed at expert i
    tau_i <- m tau_i + (1 - m) q_i
    choose by l_i - tau_i, with the selection `expert_threshold`: token t goes to i iff l_(t,i) >
        tau_i

Expert Threshold routing (Sun et al. 2026, arXiv 2603.11535, m = 0.999): expert choice made causal,
because tau comes from earlier steps. The first step sets tau outright; before it tau is `start`. q
is the mean over micro-batches and ranks of their own quantiles, weighted by their tokens, which the
paper takes over the whole batch. K is that of the layout. At m = 0.999 tau follows the logits over
thousands of steps; a run of a few hundred needs a smaller m.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Balance, Routing, Score, Select, Sizes


@register("balance")
class Threshold(Balance):
    """Gives every expert a threshold: a running quantile of its logits.

    Args:
        memory: m, share of the old threshold in the new one; in 0..1, 1 excluded.
        start: tau before the first step, a logit.

    Raises:
        ValueError: a knob is out of its range.
    """

    holds_k = True
    tau: Tensor
    step: Tensor

    def __init__(self, sizes: Sizes, *, memory: float, start: float) -> None:
        super().__init__()
        require("memory", memory, 0 <= memory < 1, "must be in 0..1, 1 excluded")
        self.memory = memory
        self.share = sizes.top_k / max(sizes.num_experts, 1)
        self.register_buffer("tau", torch.full((sizes.num_layers, sizes.num_experts), float(start)))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def check(self, score: Score, select: Select) -> None:
        name = type(select).__name__
        require(
            "select",
            name,
            not select.limited,
            "fixes the number of experts itself; set router/select=expert_threshold",
        )

    def offset(self) -> Tensor:
        return -self.tau

    @torch.no_grad()
    def observe(self, routings: Sequence[Routing]) -> Tensor:
        """Quantiles times the number of tokens (L, E)."""
        return torch.stack([self._quantile(r) * r.valid.sum() for r in routings])

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        # The first step has nothing to remember.
        memory = torch.where(self.step > 0, self.memory, 0.0).to(self.tau.dtype)
        mean = total / num_tokens.clamp_min(1)
        tau = torch.lerp(mean, self.tau, memory)
        self.tau.copy_(torch.where(num_tokens > 0, tau, self.tau))
        self.step += (num_tokens > 0).to(self.step)

    def _quantile(self, routing: Routing) -> Tensor:
        """The logit of each expert (E,) that a share K/E of the tokens exceed."""
        valid = routing.valid.view(-1, 1)  # (T, 1)
        logits = routing.logits.masked_fill(~valid, -torch.inf)
        ordered = logits.sort(0, descending=True).values  # (T, E)
        # So many logits lie above tau; between two of them it is on a straight line.
        last = (valid.sum() - 1).clamp_min(0)
        place = (self.share * valid.sum()).clamp(max=last)
        upper = ordered[place.floor().long()[None]][0]  # (E,)
        lower = ordered[place.ceil().long()[None]][0]
        return torch.lerp(upper, lower, place.frac()).nan_to_num(0, 0, 0)
