"""The kernel for the CPU, and for CUDA in all but bfloat16: a product for each run of experts with
equally many rows.

The host reads `ends`. A float32 expert is one product. Where `plan` has padded neighbouring experts
to a common number of rows they are one `bmm`. The two passes are custom operators, so that
torch.compile takes them as they are.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Consecutive experts with equally many rows.

    Attributes:
        experts: The experts.
        rows: All rows of these experts.
        num_rows: Number of rows of each expert.
    """

    experts: slice
    rows: slice
    num_rows: int

    def rows_of(self, x: Tensor) -> Tensor:
        """Return the view (experts, num_rows, width) of x (R, width)."""
        num_experts = self.experts.stop - self.experts.start
        return x[self.rows].view(num_experts, self.num_rows, x.shape[1])


def bmm_swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """As `swiglu`, with one bmm a run of experts that have equally many rows."""
    return _swiglu(x, ends, w_in, w_out)[0]


@torch.library.custom_op("experts::swiglu", mutates_args=())
def _swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (R, D), and the hidden layer before its activation (R, 2F)."""
    hidden = x.new_empty(len(x), w_in.shape[-1])
    y = torch.empty_like(x)
    for run in _runs(ends):
        # In generation, most experts get no token.
        if run.num_rows == 0:
            continue
        hidden_run = run.rows_of(hidden)
        torch.bmm(run.rows_of(x), w_in[run.experts], out=hidden_run)
        gate, up = hidden_run.chunk(2, dim=-1)
        torch.bmm(F.silu(gate).mul_(up), w_out[run.experts], out=run.rows_of(y))
    y[int(ends[-1]) :] = 0
    return y, hidden


@torch.library.custom_op("experts::swiglu_backward", mutates_args=())
def _swiglu_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, w_in and w_out.

    The activation is computed again, run by run, so that it stays in the cache.
    """
    grad_x = x.new_empty(x.shape)
    grad_w_in = w_in.new_empty(w_in.shape)
    grad_w_out = w_out.new_empty(w_out.shape)
    # A product over no rows writes zeros: the gradient of experts that got none.
    for run in _runs(ends):
        grad_y = run.rows_of(grad)
        gate, up = run.rows_of(hidden).chunk(2, dim=-1)
        silu = F.silu(gate)

        # Backward through w_out and the activation.
        grad_act = torch.bmm(grad_y, w_out[run.experts].mT)
        grad_hidden = x.new_empty(*gate.shape[:2], w_in.shape[-1])
        grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
        torch.mul(grad_act, silu, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_act.mul_(up), gate, grad_input=grad_gate)

        torch.bmm(silu.mul_(up).mT, grad_y, out=grad_w_out[run.experts])
        torch.bmm(run.rows_of(x).mT, grad_hidden, out=grad_w_in[run.experts])
        torch.bmm(grad_hidden, w_in[run.experts].mT, out=run.rows_of(grad_x))
    grad_x[int(ends[-1]) :] = 0
    return grad_x, grad_w_in, grad_w_out


def bmm_product(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """As `product`, with one bmm a run of experts that have equally many rows."""
    return _product(x, ends, weight)


@torch.library.custom_op("experts::product", mutates_args=())
def _product(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    y = x.new_empty(len(x), weight.shape[-1])
    for run in _runs(ends):
        torch.bmm(run.rows_of(x), weight[run.experts], out=run.rows_of(y))
    y[int(ends[-1]) :] = 0
    return y


@torch.library.custom_op("experts::product_backward", mutates_args=())
def _product_backward(
    grad: Tensor, x: Tensor, ends: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight."""
    grad_x = torch.empty_like(x)
    grad_weight = torch.empty_like(weight)
    for run in _runs(ends):
        grad_y = run.rows_of(grad)
        torch.bmm(grad_y, weight[run.experts].mT, out=run.rows_of(grad_x))
        torch.bmm(run.rows_of(x).mT, grad_y, out=grad_weight[run.experts])
    grad_x[int(ends[-1]) :] = 0
    return grad_x, grad_weight


def _runs(ends: Tensor) -> list[Run]:
    """Return the runs of experts, by the end of each expert's rows."""
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
    runs = []
    expert = 0
    for num_rows, members in groupby(sizes):
        next_expert = expert + len(list(members))
        rows = slice(starts[expert], stops[next_expert - 1])
        runs.append(Run(slice(expert, next_expert), rows, num_rows))
        expert = next_expert
    return runs


@_swiglu.register_fake
def _(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], w_in.shape[-1])


@_swiglu_backward.register_fake
def _(
    grad: Tensor, x: Tensor, hidden: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(w_in), torch.empty_like(w_out)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ends, w_in, w_out = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], ends, w_in, w_out)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    grad_x, grad_w_in, grad_w_out = _swiglu_backward(grad.contiguous(), *ctx.saved_tensors)
    return grad_x, None, grad_w_in, grad_w_out


_swiglu.register_autograd(_backward, setup_context=_save)


@_product.register_fake
def _(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[-1])


@_product_backward.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _save_product(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_product(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_weight = _product_backward(grad.contiguous(), *ctx.saved_tensors)
    return grad_x, None, grad_weight


_product.register_autograd(_backward_product, setup_context=_save_product)
