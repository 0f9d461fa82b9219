"""The kernel for the CPU, and for CUDA in all but bfloat16: a product for each run of experts with
equally many rows.

The host reads `ends`. A float32 expert is one product. Where `plan` has padded neighbouring experts
to a common number of rows they are one `bmm`. The two passes are custom operators, so that
torch.compile takes them as they are.
"""

from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# consecutive experts with equally many rows: their number, the rows of each
Runs = list[tuple[int, int]]


def bmm_swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """As `swiglu`, with one bmm a run of experts that have equally many rows."""
    return _swiglu(x, ends, w_in, w_out)[0]


@torch.library.custom_op("experts::swiglu", mutates_args=())
def _swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor]:
    """y (R, D) and the hidden layer before its activation (R, 2F)."""
    runs = _runs(ends)
    hidden = x.new_empty(len(x), w_in.shape[-1])
    y = torch.empty_like(x)
    rows = (_rows(t, runs) for t in (x, hidden, *hidden.chunk(2, dim=-1), y))
    experts = (_experts(t, runs) for t in (w_in, w_out))
    for x_, hidden_, gate, up, y_, w_in_, w_out_ in zip(*rows, *experts, strict=True):
        # a token alone has few experts
        if not x_.numel():
            continue
        torch.bmm(x_, w_in_, out=hidden_)
        torch.bmm(F.silu(gate).mul_(up), w_out_, out=y_)
    y[int(ends[-1]) :] = 0
    return y, hidden


@torch.library.custom_op("experts::swiglu_backward", mutates_args=())
def _swiglu_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w_in and w_out. Run by run, so that the activation, computed again,
    stays in the cache.
    """
    runs = _runs(ends)
    grad_x, grad_w_in, grad_w_out = (t.new_empty(t.shape) for t in (x, w_in, w_out))
    rows = (_rows(t, runs) for t in (grad, x, *hidden.chunk(2, dim=-1), grad_x))
    experts = (_experts(t, runs) for t in (w_in, w_out, grad_w_in, grad_w_out))
    for grad_y, x_, gate, up, grad_x_, w_in_, w_out_, grad_w_in_, grad_w_out_ in zip(
        *rows, *experts, strict=True
    ):
        grad_act = torch.bmm(grad_y, w_out_.mT)
        silu = F.silu(gate)
        grad_hidden = x.new_empty(*gate.shape[:2], w_in.shape[-1])
        grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
        torch.mul(grad_act, silu, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_act.mul_(up), gate, grad_input=grad_gate)
        torch.bmm(silu.mul_(up).mT, grad_y, out=grad_w_out_)
        torch.bmm(x_.mT, grad_hidden, out=grad_w_in_)
        torch.bmm(grad_hidden, w_in_.mT, out=grad_x_)
    grad_x[int(ends[-1]) :] = 0
    return grad_x, grad_w_in, grad_w_out


def bmm_product(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """As `product`, with one bmm a run of experts that have equally many rows."""
    return _product(x, ends, weight)


@torch.library.custom_op("experts::product", mutates_args=())
def _product(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    runs = _runs(ends)
    y = x.new_empty(len(x), weight.shape[-1])
    for x_, y_, weight_ in zip(_rows(x, runs), _rows(y, runs), _experts(weight, runs), strict=True):
        torch.bmm(x_, weight_, out=y_)
    y[int(ends[-1]) :] = 0
    return y


@torch.library.custom_op("experts::product_backward", mutates_args=())
def _product_backward(
    grad: Tensor, x: Tensor, ends: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    runs = _runs(ends)
    grad_x = torch.empty_like(x)
    grad_weight = torch.empty_like(weight)
    rows = (_rows(t, runs) for t in (grad, x, grad_x))
    experts = (_experts(t, runs) for t in (weight, grad_weight))
    for grad_, x_, grad_x_, weight_, grad_weight_ in zip(*rows, *experts, strict=True):
        torch.bmm(grad_, weight_.mT, out=grad_x_)
        torch.bmm(x_.mT, grad_, out=grad_weight_)
    grad_x[int(ends[-1]) :] = 0
    return grad_x, grad_weight


def _runs(ends: Tensor) -> Runs:
    bounds = ends.tolist()
    sizes = (stop - start for start, stop in zip([0, *bounds], bounds, strict=False))
    return [(len(list(run)), size) for size, run in groupby(sizes)]


def _rows(x: Tensor, runs: Runs) -> list[Tensor]:
    """(R, width) -> a view (experts, rows, width) a run, without the rows after the last end."""
    lengths = [n * size for n, size in runs]
    parts = x[: sum(lengths)].split(lengths)
    return [part.view(n, size, x.shape[1]) for part, (n, size) in zip(parts, runs, strict=True)]


def _experts(w: Tensor, runs: Runs) -> tuple[Tensor, ...]:
    return w.split([n for n, _ in runs])


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
