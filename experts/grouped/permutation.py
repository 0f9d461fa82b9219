"""Dispatch and combine: from tokens to rows sorted by expert,
and back to the gated sum per token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experts.grouped.device import autocast_dtype, on_host
from experts.grouped.planning import Plan

# rows that stay in the cache of a CPU between two operations
CACHED = 2048


def dispatch(x: Tensor, plan: Plan) -> Tensor:
    """x (T, D) -> rows (R, D) sorted by expert, in the autocast dtype."""
    return _Dispatch.apply(x.to(autocast_dtype(x)), plan.token, plan.row, plan.starts)


def scale(rows: Tensor, gate: Tensor, plan: Plan) -> Tensor:
    """rows (R, D), gate (A,) float32 -> (R, D):
    each row times the gate of its assignment, 0 where it has none.
    """
    gate = gate.masked_fill(plan.unassigned, 0)
    row_gate = gate.new_zeros(len(rows)).scatter(0, plan.row, gate)
    return rows * row_gate[:, None].to(rows.dtype)


def combine(y: Tensor, gate: Tensor, plan: Plan) -> Tensor:
    """y (R, D), gate (A,) float32 -> (T, D):
    the sum of gate * y over the assignments of a token, in the dtype of y.
    """
    gate = gate.masked_fill(plan.unassigned, 0)
    return _Combine.apply(y, gate.to(y.dtype), plan.token, plan.row, plan.starts)


class _Dispatch(torch.autograd.Function):
    """Gather; the backward sums the rows of a token without atomics, so it is deterministic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, row: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(row, starts)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        row, starts = ctx.saved_tensors
        return F.embedding_bag(row, grad.contiguous(), starts, mode="sum"), None, None, None


class _Combine(torch.autograd.Function):
    """A weighted embedding bag, whose bags are the tokens."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, gate: Tensor, token: Tensor, row: Tensor, starts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y, gate, token, row)
        return F.embedding_bag(row, y, starts, mode="sum", per_sample_weights=gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, token, row = ctx.saved_tensors
        row_gate = gate.new_zeros(token.shape).scatter_(0, row, gate)
        grad_y = torch.empty_like(y)
        grad_row_gate = torch.empty_like(row_gate)
        # On a CPU, a block of rows stays in the cache over the three operations.
        block = CACHED if on_host(y) else max(1, len(y))
        for start in range(0, len(y), block):
            rows = slice(start, start + block)
            torch.index_select(grad, 0, token[rows], out=grad_y[rows])
            torch.sum(grad_y[rows] * y[rows], dim=-1, out=grad_row_gate[rows])
            grad_y[rows].mul_(row_gate[rows, None])
        return grad_y, grad_row_gate[row], None, None, None
