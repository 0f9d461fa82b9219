"""`python -m benchmarks.routers`: what each part of a router adds to a training step of the default
model.

One kind of part is exchanged at a time, the others stay those of the default router. A router alone
is timed, forward and backward, in turns with a whole step of the default model; its excess over the
default router, times the number of layers, is given as a share of the step, and so is its excess in
FLOPs. Read the shares.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from app.config.compose import composed
from app.config.parts import router_of
from app.model.assemble import build_model
from app.registry import names
from benchmarks.report import Row, command
from benchmarks.timing import medians
from experts.contract import Experts
from routers.contract import Context, Sizes

# a step of the default config
ROWS = 8
LENGTH = 256
VOCAB = 4096
PLAIN = {"score": "linear", "select": "top_k", "weigh": "softmax", "drop": "none"}
Work = Callable[[], object]


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row a part, by its share of a step beyond its FLOPs; the ratio is to the default router.
    On the CPU only.
    """
    rounds = 1 if quick else 20
    torch.manual_seed(0)
    model = build_model(composed([]), VOCAB)
    layers = len(model.routers())
    layout = next(m for m in model.modules() if isinstance(m, Experts))
    sizes = Sizes(model.config.dim, layout.num_experts, layout.top_k, layers, VOCAB, layer=1)
    step = _step(model)
    works = {(kind, name): router(sizes, **{kind: name}) for kind in PLAIN for name in names(kind)}
    flops = {part: _flops(work) for part, work in works.items()}
    every: dict[Any, Work] = {**works, "step": step}
    seconds = medians(every, 1, rounds)
    whole = seconds["step"]
    whole_flops = _flops(step)
    rows = []
    for kind, name in works:
        base = (kind, PLAIN[kind])
        share = layers * (seconds[kind, name] - seconds[base]) / whole
        of_flops = layers * (flops[kind, name] - flops[base]) / whole_flops
        rows.append(
            {
                "what": f"{kind}={name}",
                "router_ms": 1000 * seconds[kind, name],
                "step_percent": 100 * share,
                "flops_percent": 100 * of_flops,
                "beyond_flops_percent": 100 * (share - of_flops),
                "ratio": seconds[kind, name] / seconds[base],
            }
        )
    return rows


def router(sizes: Sizes, **parts: str) -> Work:
    """Forward and backward of a router in the second MoE layer, on the tokens of a step."""
    made, below = (router_of(sizes._replace(layer=i), **PLAIN | parts).train() for i in (1, 0))
    tokens = torch.randint(0, VOCAB, (ROWS * LENGTH,))
    valid = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    context = Context(
        valid, tokens, shared=made.score.shared(), seed=1, step=1000, domain=tokens % 4
    )
    x = torch.randn(len(tokens), sizes.dim, requires_grad=True)
    state = below(x, context).state
    context = context._replace(state=None if state is None else state.detach().requires_grad_())

    def work() -> None:
        routing = made(x, context)
        value = routing.gate.sum() + routing.probabilities.square().sum()
        if value.requires_grad:
            value.backward()

    return work


def _step(model: torch.nn.Module) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH + 1))
    valid = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    document = torch.zeros(ROWS, LENGTH, dtype=torch.int64)

    def work() -> None:
        nll, routings = model(tokens[:, :-1], tokens[:, 1:], valid, document)
        terms = model.balancer.losses(routings, None)  # type: ignore[union-attr, operator]
        (nll.mean() + sum(weight * raw for raw, weight in terms.values())).backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def _flops(work: Work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


if __name__ == "__main__":
    command("routers", run)
