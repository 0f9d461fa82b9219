"""Loss-free balancing: a bias on the choice, raised for experts with too little load and lowered
for the others.

    choose by s_i + b_i, weigh by s_i;   after every step   b_i += u sign(mean(load) - load_i)

Wang et al. 2024, arXiv 2408.15664, algorithm 1; DeepSeek-V3, arXiv 2412.19437, section 2.1.2. The
load is that of the step before, so nothing looks ahead. `proportional` uses the violation (mean -
load_i) / mean instead of its sign, which softmax scores need (section 4.3 there uses the raw
counts; ours does not depend on the batch size). It cannot undo a collapse of softmax scores: one
expert then leads by nearly 1 and the others differ by thousandths, and no one rate spans both; an
even start it keeps. `recenter` keeps the mean of the biases at 0, as torchtitan does: only
differences matter to the choice.
"""

from typing import Literal

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Balance, Sizes
from routers.distributions import violation


@register("balance")
class LossFree(Balance):
    """Steers the choice by a bias per expert that follows the sign of its violation; adds no loss,
    so no gradient.

    Args:
        rate: u, change of a bias per step, in units of a score; above 0.
        rule: `sign`, or `proportional` to the violation (for softmax scores).
        recenter: whether the mean bias of a layer is kept at 0.
        freeze_step: the step from which the biases stay as they are; at least 0, or null: never.

    Raises:
        ValueError: a knob is out of its range.
    """

    bias: Tensor
    step: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        rate: float,
        rule: Literal["sign", "proportional"],
        recenter: bool,
        freeze_step: int | None,
    ) -> None:
        super().__init__()
        require("rate", rate, rate > 0, "must be positive")
        require(
            "freeze_step",
            freeze_step,
            freeze_step is None or freeze_step >= 0,
            "must be null or at least 0",
        )
        self.rate = rate
        self.rule = rule
        self.recenter = recenter
        self.freeze_step = freeze_step
        self.register_buffer("bias", torch.zeros(sizes.num_layers, sizes.num_experts))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def offset(self) -> Tensor:
        return self.bias

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        error = violation(total, total.mean(-1, keepdim=True))  # (L, E)
        delta = self.rate * (error.sign() if self.rule == "sign" else error)
        if self.recenter:
            delta = delta - delta.mean(-1, keepdim=True)
        if self.freeze_step is not None:
            delta = delta * (self.step < self.freeze_step)
        self.bias += delta
        self.step += 1
