"""Muon: momentum, made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon; arXiv 2502.16982).

    M <- momentum M + (1 - momentum) G          U = (1 - momentum) G + momentum M
    W <- W - lr (decay W + 0.2 sqrt(max(rows, columns)) O(U))

O brings all singular values near 1, by Newton-Schulz steps X <- a X + (b A + c A A) X with A = X X^T, from X = U / |U|;
Jordan et al. make five. The factor gives an update the root mean square that those of AdamW have (2502.16982, equation
4), so one rate and one decay serve both. Matrices between hidden layers take Muon, every expert of a stack by itself;
embedding, head, norms, biases and routers take AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from app.registry import register, require
from experts.grouped.device import is_native

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c of Jordan et al.: steep at 0, within 0.7..1.2 at 1
MATCH = 0.2  # root mean square of an update of AdamW (2502.16982, section 2.2)


@register("optimizer")
class Muon(torch.optim.AdamW):
    """Muon for the parameter groups that are marked as `hidden`, AdamW for all others.

    Args:
        lr: peak rate of both; at least 0.
        momentum: of Muon; in 0..1, below 1.
        steps: of Newton-Schulz; at least 1.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of both; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        steps: int,
        betas: list[float],
        eps: float,
        weight_decay: float,
    ) -> None:
        require("lr", lr, lr >= 0, "must be at least 0")
        require("momentum", momentum, 0 <= momentum < 1, "must be at least 0 and below 1")
        require("steps", steps, steps >= 1, "must be at least 1")
        require("betas", betas, len(betas) == 2 and all(0 <= b < 1 for b in betas), "must be two numbers in 0..1")
        require("eps", eps, eps >= 0, "must be at least 0")
        require("weight_decay", weight_decay, weight_decay >= 0, "must be at least 0")
        super().__init__(params, lr, (betas[0], betas[1]), eps, weight_decay, fused=True)
        self.momentum, self.steps = momentum, steps

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's looks for its own state at every parameter

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` is called first."""
        loss = None if closure is None else closure()
        gradients: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            for parameter in group["params"] if group.get("hidden") else []:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])
                    gradients[parameter], parameter.grad = parameter.grad, None
        super().step()  # AdamW passes over what has no gradient
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        direction = of_whole_matrices(gradient.lerp(buffer, self.momentum), self.steps)
        parameter.mul_(1 - lr * decay).add_(direction, alpha=-lr * MATCH * max(parameter.shape[-2:]) ** 0.5)


def of_whole_matrices(x: Tensor, steps: int) -> Tensor:
    """`orthogonal` of matrices (..., rows, columns) that may be split over ranks, split as they were.

    A stack is split between its matrices, so each rank has whole ones. A single matrix is gathered, on every rank.
    """
    if not isinstance(x, DTensor):
        return orthogonal(x, steps)
    if x.dim() == 3:
        return DTensor.from_local(
            orthogonal(x.to_local(), steps), x.device_mesh, x.placements, shape=x.shape, stride=x.stride()
        )
    whole = DTensor.from_local(orthogonal(x.full_tensor(), steps), x.device_mesh, [Replicate()] * x.device_mesh.ndim)
    return whole.redistribute(placements=x.placements)


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """U V^T of x = U S V^T (..., rows, columns), nearly: after five steps singular values within 0.7..1.2; 0 of 0."""
    dtype = torch.bfloat16 if x.is_cuda or is_native(torch.bfloat16) else torch.float32
    wide = x.size(-2) <= x.size(-1)
    y = (x if wide else x.mT).to(dtype)  # the smaller Gram matrix
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y if wide else y.mT).to(x.dtype)
