"""Can two experts be one? The two of each layer with the most similar weights become their mean, in
both places.

As MC-SMoE does it (Li et al. 2024, arXiv 2310.01334, section 3): the hidden units of the second are
first put in the order in which they are most like those of the first; the mean is weighted by the
load. Beside it: the rarer one goes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from app.analysis.experiments.intervene import forbidden, moe_layers
from app.analysis.experiments.observe import passes
from app.analysis.experiments.redundancy import most_similar
from app.analysis.experiments.removal import only
from app.analysis.likelihood import evaluate
from app.data.corpus import Batch
from app.model.moe import MoE
from app.runs.read import TrainedRun
from app.training.messages import watched
from experts.contract import Routed, Stack
from routers.assignments import expert_load

TITLE = "Two experts merged"
READING = (
    "Nats per token lost by layer, when the two experts of the most similar weights become one, "
    "and when the rarer of "
    "them goes instead: where merging costs less, the mean keeps what both know (MC-SMoE)."
)


def measure(run: TrainedRun, batches: Sequence[Batch]) -> dict[str, Any] | None:
    """By layer: the pair, and what its merger and the loss of its rarer half cost;
    None without a stack of experts.
    """
    layers = moe_layers(run.model)
    stacks = [stack for layer in layers if (stack := stack_of(layer)) is not None]
    if len(stacks) < len(layers):
        return None
    # (L, E)
    loads = torch.stack([expert_load(routings) for _, _, routings in passes(run, batches)]).sum(0)
    before = evaluate(run.model, batches, run.text.domains)["nats"]
    found: dict[str, list[Any]] = {"pairs": [], "merged": [], "without the rarer": []}
    for layer, stack, load in watched(list(zip(layers, stacks, loads, strict=True)), TITLE):
        pair = most_similar(layer, len(stack.w_in))[0]
        found["pairs"].append(pair)
        with merged(stack, pair, load):
            found["merged"].append(evaluate(run.model, batches, run.text.domains)["nats"] - before)
        with forbidden([layer], partial(only, min(pair, key=lambda expert: float(load[expert])))):
            found["without the rarer"].append(
                evaluate(run.model, batches, run.text.domains)["nats"] - before
            )
    return found


def stack_of(layer: MoE) -> Stack | None:
    """The experts of a layer that can be merged; None if there are not two of one width."""
    stack = layer.experts.routed if isinstance(layer.experts, Routed) else None
    return stack if stack is not None and len(stack.w_in) > 1 else None


@contextmanager
def merged(stack: Stack, pair: tuple[int, int], load: Tensor) -> Iterator[None]:
    """Both experts of a pair are their mean, weighted by load (E,)."""
    one, other = pair
    weights = [p.data for p in stack.parameters()]
    kept = [weight[[one, other]].clone() for weight in weights]
    share = float(load[one] / (load[one] + load[other]).clamp_min(1))
    for weight, ordered in zip(weights, in_order(stack, one, other), strict=True):
        weight[one] = weight[other] = share * weight[one] + (1 - share) * ordered
    try:
        yield
    finally:
        for weight, old in zip(weights, kept, strict=True):
            weight[[one, other]] = old


def in_order(stack: Stack, one: int, other: int) -> list[Tensor]:
    """The weights of the second expert, as `parameters()` has them,
    its hidden units in the order of the first's.
    """
    width = stack.w_out.size(1)
    columns = stack.activation.columns
    first, second = (
        torch.cat((*stack.w_in[e].chunk(columns, -1), stack.w_out[e].T)).detach()
        for e in (one, other)
    )
    # (F, F), of units (.., F)
    _, order = linear_sum_assignment((first.T @ second).numpy(), maximize=True)
    units = torch.from_numpy(order)
    inputs = torch.cat([units + width * column for column in range(columns)])
    put = {"w_in": lambda w: w[:, inputs], "w_out": lambda w: w[units], "b_in": lambda w: w[inputs]}
    return [
        put.get(name, lambda w: w)(weight.data[other]) for name, weight in stack.named_parameters()
    ]


def draw(figure: Figure, numbers: dict[str, Any]) -> None:
    """Two bars a layer."""
    axes = figure.subplots()
    for side, name in ((-0.2, "merged"), (0.2, "without the rarer")):
        axes.bar(
            [layer + side for layer in range(len(numbers[name]))], numbers[name], 0.4, label=name
        )
    names = [
        f"layer {layer}\n{one} and {other}" for layer, (one, other) in enumerate(numbers["pairs"])
    ]
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="nats per token more")
    axes.legend()
