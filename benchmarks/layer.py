"""The MoE layer against a dense SwiGLU of equal active FLOPs and against its peers, forward and
backward.

All contenders take turns within a step and get the same routing, drawn anew each step: a fixed
routing hides that oneDNN compiles a bfloat16 kernel for every new number of rows. Read the ratios;
the times belong to the machine.
"""

from collections.abc import Callable, Sequence
from itertools import product
from statistics import median
from typing import NamedTuple

import app.config.environment  # noqa: F401  isort: skip  before torch

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import Row, command
from benchmarks.timing import in_turns
from experts import grouped
from experts.grouped.device import is_native

FIRST = 20  # steps reported as "first"


class Shape(NamedTuple):
    tokens: int
    dim: int
    num_experts: int
    top_k: int
    hidden_dim: int


GOALS = [Shape(4096, 256, 64, 6, 128), Shape(8192, 512, 64, 6, 256), Shape(4096, 256, 8, 2, 512)]

Layer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    token = torch.arange(len(x), device=x.device).repeat_interleave(expert.shape[1])
    worth = grouped.rows_worth_a_product(x, w_in[0].numel() + w_out[0].numel())
    plan = grouped.plan(expert.flatten(), token, len(w_in), len(x), worth)
    y = grouped.swiglu(grouped.dispatch(x, plan), plan.ends, w_in, w_out)
    return grouped.combine(y, gate.flatten(), plan)


def grouped_mm(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The path of `transformers` 5: sort, gather, two grouped products, weighted sum."""
    order = expert.flatten().argsort()
    ends = torch.histc(expert.float(), len(w_in), 0, len(w_in) - 1).cumsum(0).to(torch.int32)
    hidden, up = functional.grouped_mm(x[order // expert.shape[1]], w_in, offs=ends).chunk(
        2, dim=-1
    )
    y = functional.grouped_mm(functional.silu(hidden) * up, w_out, offs=ends) * gate.flatten()[
        order, None
    ].to(x.dtype)
    return y[order.argsort()].view(*expert.shape, -1).sum(1)


def loop(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The eager loop over experts with index_add."""
    out = torch.zeros_like(x)
    for index in range(len(w_in)):
        token, slot = torch.where(expert == index)
        hidden, up = (x[token] @ w_in[index]).chunk(2, dim=-1)
        y = (functional.silu(hidden) * up) @ w_out[index] * gate[token, slot, None].to(x.dtype)
        out = out.index_add(0, token, y)
    return out


def dense(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    hidden, up = (x @ w_in).chunk(2, dim=-1)
    return (functional.silu(hidden) * up) @ w_out


PEERS: dict[str, Layer] = {"ours": ours, "grouped_mm": grouped_mm, "loop": loop}
# the loop takes 3 to 5 times as long as the dense network
FAST = ("ours", "grouped_mm")


def draw(shape: Shape, zipf: float, device: str) -> tuple[Tensor, Tensor]:
    """Distinct experts (T, K) of every token, the i-th in order of popularity drawn ~ 1 / i^zipf,
    and gates (T, K).
    """
    popularity = -zipf * torch.arange(1, shape.num_experts + 1).log()
    order = torch.randperm(shape.num_experts, generator=torch.Generator().manual_seed(0))
    noise = -torch.empty(shape.tokens, shape.num_experts).exponential_().log()  # Gumbel
    expert = (popularity[order] + noise).topk(shape.top_k).indices.to(device)
    return expert, torch.rand(expert.shape, device=device).requires_grad_()


def measure(
    shape: Shape,
    dtype: torch.dtype,
    zipf: float,
    warm_up: int,
    steps: int,
    peers: Sequence[str] = tuple(PEERS),
    device: str = "cpu",
) -> list[Row]:
    """One row a contender: milliseconds of the first steps and after `warm_up`,
    and the latter over dense.
    """
    routing: list[Tensor] = []
    works = _contenders(shape, dtype, peers, device, routing)
    seconds = in_turns(
        works,
        warm_up,
        steps,
        device,
        lambda: routing.__setitem__(slice(None), draw(shape, zipf, device)),
    )
    kept = {name: times[warm_up:] for name, times in seconds.items()}
    base = kept.get("dense", kept[peers[0]])
    case = (
        f"T={shape.tokens} D={shape.dim} E={shape.num_experts} K={shape.top_k} F={shape.hidden_dim}"
    )
    return [
        {
            "what": f"{name}, {case}",
            "dtype": str(dtype).removeprefix("torch."),
            "zipf": zipf,
            "first_ms": 1e3 * median(seconds[name][:FIRST]),
            "ms": 1e3 * median(times),
            "ratio": median(times) / median(base),
            "ratio_of_minima": min(times) / min(base),
        }
        for name, times in kept.items()
    ]


def _contenders(
    shape: Shape, dtype: torch.dtype, peers: Sequence[str], device: str, routing: list[Tensor]
) -> dict[str, Callable[[], None]]:
    """Forward and backward of every contender,
    by the experts and gates that `routing` holds at that time.
    """

    def leaf(*size: int) -> Tensor:
        return torch.randn(size).div_(size[-2] ** 0.5).to(device, dtype).requires_grad_()

    _, dim, num_experts, top_k, hidden_dim = shape
    x = leaf(shape.tokens, dim)
    probe = torch.randn(shape.tokens, dim).to(device, dtype)
    routed = leaf(num_experts, dim, 2 * hidden_dim), leaf(num_experts, hidden_dim, dim)
    whole = leaf(dim, 2 * top_k * hidden_dim), leaf(top_k * hidden_dim, dim)

    def work(
        layer: Callable[..., Tensor], weights: tuple[Tensor, Tensor], *routing: Tensor
    ) -> None:
        torch.autograd.backward(layer(x, *routing, *weights), probe)
        for each in (x, *weights, *routing):
            each.grad = None

    def turn(name: str) -> Callable[[], None]:
        return lambda: work(PEERS[name], routed, *routing)

    contenders = {name: turn(name) for name in peers}
    return {**contenders, "dense": lambda: work(dense, whole)} if len(peers) > 1 else contenders


def dtypes(device: str) -> list[torch.dtype]:
    """Those that the device multiplies fast."""
    return [
        dtype for dtype in (torch.float32, torch.bfloat16) if device == "cuda" or is_native(dtype)
    ]


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """Every shape, dtype and load, without the loop; the ratio is to the dense network."""
    warm_up, steps = (1, 3) if quick else (6, 20)
    cases = [(GOALS[2], 0.0)] if quick else [*product(GOALS, (0.0, 1.0))]
    each = product(dtypes(device), cases)
    return [
        row
        for dtype, (shape, zipf) in each
        for row in measure(shape, dtype, zipf, warm_up, steps, FAST, device)
    ]


if __name__ == "__main__":
    command("layer", run)
