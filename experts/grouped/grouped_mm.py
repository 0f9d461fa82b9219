"""The kernel for bfloat16 on CUDA: torch's grouped_mm.

On Hopper and data-centre Blackwell (sm90, sm100) the host never waits for the device; elsewhere
torch multiplies expert by expert and reads `ends` on the host for it.

grouped_mm leaves rows after the last end as they are in memory, forward and backward, and may leave
the weight gradient of an expert without rows so (pytorch#172439): both are set to 0 here, in place.
Widths must be multiples of 16 bytes: others are padded.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 16  # bytes


def grouped_mm_swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """As `swiglu`."""
    dim = missing(x.shape[1], x)
    width = missing(w_out.shape[1], x)
    if dim or width:
        x = F.pad(x, (0, dim))
        # gate and up are padded each by itself
        sections = w_in.unflatten(-1, (2, -1))
        w_in = F.pad(sections, (0, width, 0, 0, 0, dim)).flatten(-2)
        w_out = F.pad(w_out, (0, dim, 0, width))
    y = _Swiglu.apply(x, ends, w_in, w_out)
    return y[:, : w_out.shape[2] - dim]


def grouped_mm_product(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """As `product`."""
    inner = missing(weight.shape[1], x)
    outer = missing(weight.shape[2], x)
    if inner or outer:
        x = F.pad(x, (0, inner))
        weight = F.pad(weight, (0, outer, 0, inner))
    return _Product.apply(x, ends, weight)[:, : weight.shape[2] - outer]


def missing(width: int, x: Tensor) -> int:
    """By how many columns a row of the dtype of x falls short of a multiple of 16 bytes."""
    return -width % (ALIGNED // x.element_size())


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, ends, weight)
        return _without_tail(F.grouped_mm(x, weight, offs=ends), ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        x, ends, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_x = _without_tail(F.grouped_mm(grad, weight.mT, offs=ends), ends)
        return grad_x, None, _weight_gradient(x, grad, ends)


class _Swiglu(torch.autograd.Function):
    """Keeps the hidden layer before its activation, and computes the activation again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        hidden = F.grouped_mm(x, w_in, offs=ends)  # (R, 2F)
        ctx.save_for_backward(x, hidden, ends, w_in, w_out)
        gate, up = hidden.chunk(2, dim=-1)
        return _without_tail(F.grouped_mm(F.silu(gate) * up, w_out, offs=ends), ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        x, hidden, ends, w_in, w_out = ctx.saved_tensors
        grad = grads[0].contiguous()
        gate, up = hidden.chunk(2, dim=-1)
        silu = F.silu(gate)
        grad_act = F.grouped_mm(grad, w_out.mT, offs=ends)
        grad_gate = torch.ops.aten.silu_backward(grad_act * up, gate)
        grad_hidden = torch.cat((grad_gate, grad_act * silu), dim=-1)
        grad_x = _without_tail(F.grouped_mm(grad_hidden, w_in.mT, offs=ends), ends)
        grad_w_in = _weight_gradient(x, grad_hidden, ends)
        grad_w_out = _weight_gradient(silu * up, grad, ends)
        return grad_x, None, grad_w_in, grad_w_out


def _weight_gradient(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    """(E, D, N) of rows x (R, D) and the gradient (R, N) of their products;
    0 for an expert without rows.
    """
    idle = ends.diff(prepend=ends.new_zeros(1)) == 0
    return F.grouped_mm(x.mT, grad, offs=ends).masked_fill_(idle[:, None, None], 0)


def _without_tail(y: Tensor, ends: Tensor) -> Tensor:
    is_tail = torch.arange(len(y), device=y.device) >= ends[-1]
    return y.masked_fill_(is_tail[:, None], 0)
