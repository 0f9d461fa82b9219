"""PID bias: a controller on the smoothed violation of the load offsets the choice.

    e_i <- m e_i + (1 - m) (mean(load) - load_i) / mean(load)
    b_i <- b_i + I e_i + P (e_i - e'_i) + D (e_i - 2 e'_i + e''_i),    e', e'' those of the two steps before

The velocity form of a PID controller, so b = P e + I sum e + D de. With P = D = m = 0 it is LongCat-Flash's rule
(arXiv 2509.01322) for its routed experts, with rate I / (number of experts) in its units; that report and ZAYA1
(arXiv 2511.17127) speak of PID control, their gains and further terms are unverified. The load is that of the step
before.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Balance, Sizes


@register("balance")
class PID(Balance):
    """Steers the choice by a bias per expert that a PID controller moves.

    Args:
        proportional: P, gain on the violation, in units of a score; at least 0.
        integral: I, gain on its sum over the steps; above 0.
        derivative: D, gain on its change; at least 0.
        memory: m, share of the old violation in the smoothed one; in 0..1, 1 excluded.

    Raises:
        ValueError: a knob is out of its range.
    """

    bias: Tensor
    errors: Tensor

    def __init__(self, sizes: Sizes, *, proportional: float, integral: float, derivative: float, memory: float) -> None:
        super().__init__()
        require("proportional", proportional, proportional >= 0, "must not be negative")
        require("integral", integral, integral > 0, "must be positive, or a lasting violation is never corrected")
        require("derivative", derivative, derivative >= 0, "must not be negative")
        require("memory", memory, 0 <= memory < 1, "must be in 0..1, 1 excluded")
        self.gains, self.memory = (integral, proportional, derivative), memory
        self.register_buffer("bias", torch.zeros(sizes.num_layers, sizes.num_experts))
        self.register_buffer("errors", torch.zeros(3, sizes.num_layers, sizes.num_experts))  # e, e', e''

    def offset(self) -> Tensor:
        return self.bias

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        mean = total.mean(-1, keepdim=True)  # (L, 1)
        violation = (mean - total) / mean.clamp_min(1)  # (L, E)
        now, before = self.errors[0].lerp(violation, 1 - self.memory), self.errors.clone()
        integral, proportional, derivative = self.gains
        self.bias += integral * now + proportional * (now - before[0])
        self.bias += derivative * (now - 2 * before[0] + before[1])
        self.errors.copy_(torch.stack([now, before[0], before[1]]))
