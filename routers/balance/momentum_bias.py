"""Momentum bias (SMEBU): the bias moves by a running mean of softly clamped violations instead of
by their sign.

    v_i = (mean(load) - load_i) / mean(load)
    d_i = u tanh(c v_i), minus its mean over the experts
    m_i <- a m_i + (1 - a) d_i                    b_i <- b_i + m_i

Soft-clamped Momentum Expert Bias Updates, Arcee Trinity Large 2026, arXiv 2602.17004, where u is
called lambda (5e-4), c kappa (2) and a beta (0.5). The load is that of the step before.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Balance, Sizes
from routers.distributions import violation


@register("balance")
class MomentumBias(Balance):
    """Steers the choice by a bias per expert whose change has momentum: smoother than the sign
    rule.

    Args:
        rate: u, largest change of a bias per step, in units of a score; above 0.
        sharpness: c, factor on the violation before tanh; above 0.
        momentum: a, share of the old change; in 0..1, 1 excluded.

    Raises:
        ValueError: a knob is out of its range.
    """

    bias: Tensor
    velocity: Tensor

    def __init__(self, sizes: Sizes, *, rate: float, sharpness: float, momentum: float) -> None:
        super().__init__()
        require("rate", rate, rate > 0, "must be positive")
        require("sharpness", sharpness, sharpness > 0, "must be positive")
        require("momentum", momentum, 0 <= momentum < 1, "must be in 0..1, 1 excluded")
        self.rate = rate
        self.sharpness = sharpness
        self.momentum = momentum
        self.register_buffer("bias", torch.zeros(sizes.num_layers, sizes.num_experts))
        self.register_buffer("velocity", torch.zeros(sizes.num_layers, sizes.num_experts))

    def offset(self) -> Tensor:
        return self.bias

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        # (L, E)
        delta = self.rate * (self.sharpness * violation(total, total.mean(-1, keepdim=True))).tanh()
        self.velocity.lerp_(delta - delta.mean(-1, keepdim=True), 1 - self.momentum)
        self.bias += self.velocity
