"""PID bias: a controller on the smoothed violation of the load offsets the choice.

    e_i <- m e_i + (1 - m) (target - load_i) / target,    target = mean(load), or  expected T / N
    b_i <- b_i + I e_i + P (e_i - e'_i) + D (e_i - 2 e'_i + e''_i),    e', e'' those of the two
        steps before

The velocity form of a PID controller, so b = P e + I sum e + D de. N counts the experts with a
network; the others keep one bias, `free`. With P = D = m = 0 it is LongCat-Flash's rule (arXiv
2509.01322, section 2.1), whose db_i = mu (K_e / (K N) - T_i / (K T)) has mu = I K N / K_e; at K_e /
K = N / (N + Z) that is I times the pool. ZAYA1's released routers start with -1 for the expert that
skips. That report and LongCat's speak of PID control; their gains and further terms are unverified.
The load is that of the step before.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Balance, Sizes
from routers.distributions import violation


@register("balance")
class PID(Balance):
    """Steers the choice by a bias per expert that a PID controller moves.

    Args:
        proportional: P, gain on the violation, in units of a score; at least 0.
        integral: I, gain on its sum over the steps; above 0.
        derivative: D, gain on its change; at least 0.
        memory: m, share of the old violation in the smoothed one; in 0..1, 1 excluded.
        expected: experts with a network per token on average; above 0, or null: their share of the
            pool.
        free: bias of the experts that compute next to nothing.

    Raises:
        ValueError: a knob is out of its range.
    """

    moved: Tensor
    bias: Tensor
    errors: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        proportional: float,
        integral: float,
        derivative: float,
        memory: float,
        expected: float | None,
        free: float,
    ) -> None:
        super().__init__()
        require("proportional", proportional, proportional >= 0, "must not be negative")
        require(
            "integral",
            integral,
            integral > 0,
            "must be positive, or a lasting violation is never corrected",
        )
        require("derivative", derivative, derivative >= 0, "must not be negative")
        require("memory", memory, 0 <= memory < 1, "must be in 0..1, 1 excluded")
        require("expected", expected, expected is None or expected > 0, "must be null or positive")
        self.gains = (integral, proportional, derivative)
        self.memory = memory
        self.expected = expected
        is_free = torch.tensor([expert in sizes.free for expert in range(sizes.num_experts)])
        self.register_buffer("moved", ~is_free, persistent=False)  # (E,)
        self.register_buffer(
            "bias", torch.zeros(sizes.num_layers, sizes.num_experts).masked_fill(is_free, free)
        )
        # e, e', e''
        self.register_buffer("errors", torch.zeros(3, sizes.num_layers, sizes.num_experts))

    def offset(self) -> Tensor:
        return self.bias

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        target = total.mean(-1, keepdim=True)  # (L, 1)
        if self.expected is not None:
            target = (num_tokens * self.expected / self.moved.sum()).expand_as(target)
        error = violation(total, target) * self.moved  # (L, E)
        now = self.errors[0].lerp(error, 1 - self.memory)
        before = self.errors.clone()
        integral, proportional, derivative = self.gains
        self.bias += integral * now + proportional * (now - before[0])
        self.bias += derivative * (now - 2 * before[0] + before[1])
        self.errors.copy_(torch.stack([now, before[0], before[1]]))
