"""The grouped computation: route rows to experts, compute every SwiGLU expert, add the results up per token.

    plan     which row of the expert-sorted layout holds which assignment
    dispatch x (T, D)  -> rows (R, D), sorted by expert; those of expert e end at ends[e]
    swiglu   rows (R, D) -> y (R, D),  y = (silu(x W_gate) * (x W_up)) W_out
    combine  y (R, D)  -> (T, D), the sum of gate * y over the assignments of a token

Rows after `ends[-1]` are nobody's: experts return zeros for them, and a zero gradient.

CUDA uses `torch.nn.functional.grouped_mm` and never waits for the device. On CPU a float32 expert is one product.
Small products in native bfloat16 cost more to start than to compute: there `plan` pads neighbouring experts to a common
number of rows, and `swiglu` computes every run of experts with equally many rows as one `bmm`. A padding row repeats
token 0 and has gate 0.
"""

from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # rows; a padded expert is a multiple of it, so that oneDNN compiles few kernels
CACHED = 2048  # rows that stay in the cache of a CPU between two operations


class Plan(NamedTuple):
    """Where the rows of a batch go: R rows (with padding), A assignments in the order of their tokens."""

    token: Tensor  # (R,) int64: the token in a row
    ends: Tensor  # (E,) int32: where the rows of an expert end
    row: Tensor  # (A,) int64: the row of an assignment, ordered by token
    nobody: Tensor  # (A,) bool: assignments without an expert, ordered by token
    by_token: Tensor | None  # (A,) int64: the order by token; None where the assignments have it already
    starts: Tensor  # (T,) int64: the first assignment of a token, ordered by token


def plan(expert: Tensor, token: Tensor, num_experts: int, num_tokens: int, call_rows: int = 0) -> Plan:
    """Sort assignments by expert.

    Args:
        expert: (A,) int64 in [0, E]; E is nobody.
        token: (A,) int64 in [0, T).
        call_rows: how many rows of padding cost as much as one more matrix product (see `call_rows`); 0 pads nothing.

    Without a host sync on CUDA, where R = A.
    """
    sorted_expert, order = expert.to(torch.int16).sort(stable=True)  # int16 sorts 4 times faster
    load = _count(expert, num_experts + 1)
    ends = load[:-1].cumsum(0)
    rank, num_rows = torch.arange(expert.numel(), device=expert.device), expert.numel()
    if _on_host(expert):
        size = torch.tensor(_padded(load[:-1].tolist(), call_rows)) if call_rows else load[:-1]
        unpadded, ends = ends, size.cumsum(0)
        shift = torch.cat((ends - size - unpadded + load[:-1], ends[-1:] - unpadded[-1:]))  # (E + 1,)
        rank = (rank + shift[sorted_expert.long()]).clamp_(max=int(ends[-1]))  # nobody's assignments share one row
        num_rows = int(ends[-1] + load[-1].clamp(max=1))
    row = torch.empty_like(order).scatter(0, order, rank)
    row_token = torch.zeros(num_rows, dtype=torch.int64, device=token.device).scatter(0, row, token)
    by_token = None
    if not (_on_host(token) and bool((token[1:] >= token[:-1]).all())):
        by_token = token.argsort(stable=True)
        row, expert = row[by_token], expert[by_token]
    count = _count(token, num_tokens)
    return Plan(row_token, ends.to(torch.int32), row, expert == num_experts, by_token, count.cumsum(0) - count)


def call_rows(x: Tensor, expert_params: int) -> int:
    """How many rows through an expert of so many parameters cost one more run of products; 0: padding does not pay."""
    if not _on_host(x) or _dtype(x) != torch.bfloat16 or not is_native(torch.bfloat16):
        return 0
    # Starting the six products of a run takes 0.23 ms with AMX, a row at D = 256, F = 128 half a microsecond.
    return int(3.9e7 / expert_params)


def dispatch(x: Tensor, plan: Plan) -> Tensor:
    """x (T, D) -> rows (R, D) sorted by expert, in the autocast dtype."""
    return _Dispatch.apply(x.to(_dtype(x)), plan.token, plan.row, plan.starts)


def swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """SwiGLU of every expert on its own rows.

    Args:
        x: (R, D) sorted by expert.
        ends: (E,) int32, where the rows of an expert end.
        w_in: (E, D, 2F), gate and up projection side by side.
        w_out: (E, F, D).

    Returns (R, D) in the autocast dtype; zeros after `ends[-1]`.
    """
    dtype = _dtype(x)
    wide = dtype if x.is_cuda or is_native(dtype) else torch.float32
    experts = grouped_mm_swiglu if x.is_cuda and wide != torch.float64 else bmm_swiglu
    return experts(x.to(wide), ends, w_in.to(wide), w_out.to(wide)).to(dtype)


def combine(y: Tensor, gate: Tensor, plan: Plan) -> Tensor:
    """y (R, D), gate (A,) float32 -> (T, D): the sum of gate * y over the assignments of a token, in the dtype of y."""
    gate = gate if plan.by_token is None else gate[plan.by_token]
    gate = gate.masked_fill(plan.nobody, 0)
    return _Combine.apply(y, gate.to(y.dtype), plan.token, plan.row, plan.starts)


def grouped_mm_swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """`swiglu` with grouped_mm, which leaves the rows after the last end uninitialised, forward and backward."""
    nobody = (torch.arange(x.shape[0], device=x.device) >= ends[-1])[:, None]
    gate, up = F.grouped_mm(x.masked_fill(nobody, 0), w_in, offs=ends).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up, w_out, offs=ends).masked_fill(nobody, 0)


def bmm_swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """`swiglu` with one bmm a run of experts that have equally many rows."""
    return _swiglu(x, ends, w_in, w_out)[0]


@torch.compiler.assume_constant_result
def is_native(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of that dtype; without AVX-512 torch takes 100 times longer in bfloat16."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype != torch.float16 or torch.ops.mkldnn._is_mkldnn_fp16_supported()


def _on_host(x: Tensor) -> bool:
    """Whether sizes may depend on values: reading them costs nothing there."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _count(index: Tensor, length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.int64, device=index.device).scatter_add(0, index, torch.ones_like(index))


def _dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _padded(load: list[int], call_rows: int) -> list[int]:
    """Rows of every expert after padding: neighbours share a size where that costs less than one more call."""
    size: list[int] = []
    first, largest = 0, 0  # of the run that is being built
    for index, rows in enumerate(-(-rows // BLOCK) * BLOCK for rows in load):
        length, top = index - first, max(largest, rows)
        if (length + 1) * top > length * largest + rows + call_rows:
            size += [largest] * length
            first, top = index, rows
        largest = top
    return size + [largest] * (len(load) - first)


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
    def forward(ctx: Any, y: Tensor, gate: Tensor, token: Tensor, row: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate, token, row)
        return F.embedding_bag(row, y, starts, mode="sum", per_sample_weights=gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, token, row = ctx.saved_tensors
        row_gate = gate.new_zeros(token.shape).scatter_(0, row, gate)
        grad_y, dot = torch.empty_like(y), torch.empty_like(row_gate)
        block = CACHED if _on_host(y) else len(y)
        for grad_, dot_, y_, gate_, token_ in zip(
            *(t.split(block) for t in (grad_y, dot, y, row_gate, token)), strict=True
        ):
            torch.index_select(grad, 0, token_, out=grad_)
            torch.sum(grad_ * y_, dim=-1, out=dot_)
            grad_.mul_(gate_[:, None])
        return grad_y, dot[row], None, None, None


@torch.library.custom_op("experts::swiglu", mutates_args=())
def _swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor]:
    """y (R, D) and the hidden layer before its activation (R, 2F)."""
    runs = _runs(ends)
    hidden, y = x.new_empty(len(x), w_in.shape[-1]), torch.empty_like(x)
    rows = (_rows(t, runs) for t in (x, hidden, *hidden.chunk(2, dim=-1), y))
    experts = (_experts(t, runs) for t in (w_in, w_out))
    for x_, hidden_, gate, up, y_, w_in_, w_out_ in zip(*rows, *experts, strict=True):
        torch.bmm(x_, w_in_, out=hidden_)
        torch.bmm(F.silu(gate).mul_(up), w_out_, out=y_)
    y[int(ends[-1]) :] = 0
    return y, hidden


@torch.library.custom_op("experts::swiglu_backward", mutates_args=())
def _swiglu_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w_in and w_out. Run by run, so that the activation, computed again, stays in the cache."""
    runs = _runs(ends)
    grad_x, grad_w_in, grad_w_out = (t.new_empty(t.shape) for t in (x, w_in, w_out))
    rows = (_rows(t, runs) for t in (grad, x, *hidden.chunk(2, dim=-1), grad_x))
    experts = (_experts(t, runs) for t in (w_in, w_out, grad_w_in, grad_w_out))
    for grad_y, x_, gate, up, grad_x_, w_in_, w_out_, grad_w_in_, grad_w_out_ in zip(*rows, *experts, strict=True):
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


Runs = list[tuple[int, int]]  # consecutive experts with equally many rows: their number, the rows of each


def _runs(ends: Tensor) -> Runs:
    bounds = ends.tolist()
    sizes = (stop - start for start, stop in zip([0, *bounds], bounds, strict=False))
    return [(len(list(run)), size) for size, run in groupby(sizes)]


def _rows(x: Tensor, runs: Runs) -> list[Tensor]:
    """(R, width) -> a view (experts, rows, width) a run, without the rows of nobody."""
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
