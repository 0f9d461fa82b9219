"""Muon: momentum, made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon; arXiv
2502.16982).

    M <- momentum M + (1 - momentum) G          U = (1 - momentum) G + momentum M
    W <- W - lr (decay W + 0.2 sqrt(max(rows, columns)) O(U))

O brings all singular values s near 1, by Newton-Schulz steps X <- a X + (b A + c A A) X with A = X
X^T; Jordan et al. make five from X = U / (sum s^2)^(1/2), here they start from X = U / (sum
s^8)^(1/8), which is nearer to the largest and saves a step. The factor gives an update the root
mean square that those of AdamW have (2502.16982, equation 4), so one rate and one decay serve both.
Three steps bring a random matrix to 0.92 to 0.98 of the norm of U V^T, five steps of Jordan et al.
from the Frobenius norm to 0.81 to 0.96: an update here is 0.97 to 1.2 times theirs, by shape.

Matrices between hidden layers take Muon, every expert of a stack by itself, and so does every block
of neighbouring heads or hidden units, that is of rows or columns (Per-Head Muon: Kimi K3, arXiv
2607.24653, section 2.5; blocks: arXiv 2510.16981): a wide network is the sum of narrow ones, and a
small Gram matrix is cheap. At every width a block holds whole heads of one matrix, also where a
weight concatenates several such as queries and keys. Gate and up of a gated network are the
exception: a block holds gate and up of the same hidden units, half of its columns each, which
lowers the loss by 0.004 bits per byte at widths of 32, 128 and 512 against separate blocks (LOG.md,
2026-12-01). Embedding, head, norms, biases and routers take AdamW.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from app.registry import register, require
from app.training.optimizers.blocks import Blocks, GateUp, map_blocks_on_ranks

# a, b, c of Jordan et al.: steep at 0, within 0.7..1.2 at 1
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# root mean square of an update of AdamW (2502.16982, section 2.2)
MATCH = 0.2


@register("optimizer")
class Muon(torch.optim.AdamW):
    """Muon for the parameter groups that are marked as `hidden`, AdamW for all others.

    A hidden group also has the fields of `experts.matrix.MatrixLayout`, the layout of heads or
    hidden units in its matrices (..., rows, columns); with `axis=None` they are not cut.

    Args:
        lr: peak rate of both; at least 0.
        momentum: of Muon; in 0..1, below 1.
        steps: of Newton-Schulz; at least 1.
        block: columns (or rows) that are made orthogonal together, at most; at least 1, None: all
            of a matrix.
        gate_up: "apart" orthogonalizes the gate and up projections separately, "together" in blocks
            with gate and up of the same units; None: as a single matrix, the rule of runs before
            this option existed.
        dtype: of Newton-Schulz.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of both; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        params: list[dict[str, object]],
        *,
        lr: float,
        momentum: float,
        steps: int,
        block: int | None,
        gate_up: GateUp | None,
        dtype: Literal["float32", "bfloat16"],
        betas: list[float],
        eps: float,
        weight_decay: float,
    ) -> None:
        require("lr", lr, lr >= 0, "must be at least 0")
        require("momentum", momentum, 0 <= momentum < 1, "must be at least 0 and below 1")
        require("steps", steps, steps >= 1, "must be at least 1")
        require("block", block, block is None or block >= 1, "must be at least 1, or null")
        require(
            "betas",
            betas,
            len(betas) == 2 and all(0 <= b < 1 for b in betas),
            "must be two numbers in 0..1",
        )
        require("eps", eps, eps >= 0, "must be at least 0")
        require("weight_decay", weight_decay, weight_decay >= 0, "must be at least 0")
        super().__init__(params, lr, (betas[0], betas[1]), eps, weight_decay, fused=True)
        self.momentum = momentum
        self.steps = steps
        self.block = block
        self.gate_up = gate_up
        self.dtype = getattr(torch, dtype)

    def __setstate__(self, state: dict[str, object]) -> None:
        # AdamW's looks for its own state at every parameter
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` is called first."""
        loss = None if closure is None else closure()
        gradients: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            for parameter in group["params"] if group.get("hidden") else []:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
                    gradients[parameter], parameter.grad = parameter.grad, None
        # AdamW passes over what has no gradient
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        direction = gradient.lerp(buffer, self.momentum)
        update = partial(orthogonal_update, steps=self.steps, dtype=self.dtype)
        direction = map_blocks_on_ranks(
            update, direction, Blocks.of_group(group, self.block, self.gate_up)
        )
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])


def orthogonal_update(x: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Return x (..., rows, columns) made orthogonal,
    with the root mean square of an update of AdamW.
    """
    return orthogonal(x, steps, dtype).mul_(MATCH * max(x.shape[-2:]) ** 0.5)


def orthogonal(x: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """U V^T of x = U S V^T (..., rows, columns), nearly:
    after four steps singular values within 0.67..1.2; 0 of 0.
    """
    wide = x.size(-2) <= x.size(-1)
    # the smaller Gram matrix
    y = (x if wide else x.mT).to(dtype, memory_format=torch.contiguous_format)
    gram = y @ y.mT
    total = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(1e-30)  # sum s^2
    # powers of what is left neither overflow nor vanish
    gram = gram / total
    square = gram @ gram
    # (sum s^8)^(1/8), about the largest s
    largest = square.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7) ** 0.25
    y = polynomial(gram / largest**2, square / largest**4) / (total.sqrt() * largest) @ y
    for _ in range(steps - 1):
        gram = y @ y.mT
        y = polynomial(gram, gram @ gram) @ y
    return (y if wide else y.mT).to(x.dtype)


def polynomial(gram: Tensor, square: Tensor) -> Tensor:
    """What one step multiplies X by: a + b A + c A A."""
    a, b, c = COEFFICIENTS
    y = b * gram + c * square
    y.diagonal(dim1=-2, dim2=-1).add_(a)
    return y
