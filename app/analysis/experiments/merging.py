"""Can two experts be one? The two of each layer with the most similar weights become their mean, in
both places.

As MC-SMoE does it (Li et al. 2024, arXiv 2310.01334, section 3): the hidden units of the second are
first put in the order in which they are most like those of the first; the mean is weighted by the
load. Beside it: the rarer one goes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from app.analysis.experiments.intervene import forbidden, moe_layers
from app.analysis.experiments.observe import Numbers, passes
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
    "and when the rarer of them goes instead: where merging costs less, the mean keeps what both "
    "know (MC-SMoE)."
)


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """By layer: the pair, and what its merger and the loss of its rarer half cost;
    None without a stack of experts.
    """
    layers = moe_layers(run.model)
    stacks: list[Stack] = []
    for layer in layers:
        stack = stack_of(layer)
        if stack is None:
            return None
        stacks.append(stack)
    by_batch = [expert_load(routings) for _, _, routings in passes(run, batches)]
    loads = torch.stack(by_batch).sum(0)  # (L, E)

    def nats() -> float:
        return evaluate(run.model, batches, run.text.domains)["nats"]

    before = nats()
    found: dict[str, list[object]] = {"pairs": [], "merged": [], "without the rarer": []}
    for layer, stack, load in watched(list(zip(layers, stacks, loads, strict=True)), TITLE):
        pair = most_similar(layer, len(stack.w_in))[0]
        rarer = min(pair, key=lambda expert: float(load[expert]))
        found["pairs"].append(pair)
        with merged(stack, pair, load):
            found["merged"].append(nats() - before)
        with forbidden([layer], partial(only, rarer)):
            found["without the rarer"].append(nats() - before)
    return found


def stack_of(layer: MoE) -> Stack | None:
    """The experts of a layer that can be merged; None if there are not two of one width."""
    if not isinstance(layer.experts, Routed):
        return None
    stack = layer.experts.routed
    return stack if len(stack.w_in) > 1 else None


@contextmanager
def merged(stack: Stack, pair: tuple[int, int], load: Tensor) -> Iterator[None]:
    """Both experts of a pair are their mean, weighted by load (E,)."""
    one, other = pair
    weights = [parameter.data for parameter in stack.parameters()]
    originals = [weight[[one, other]].clone() for weight in weights]
    share = float(load[one] / (load[one] + load[other]).clamp_min(1))
    for weight, ordered in zip(weights, in_order(stack, one, other), strict=True):
        mean = share * weight[one] + (1 - share) * ordered
        weight[one] = mean
        weight[other] = mean
    try:
        yield
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight[[one, other]] = original


def in_order(stack: Stack, one: int, other: int) -> list[Tensor]:
    """The weights of the second expert, as `parameters()` has them,
    its hidden units in the order of the first's.
    """
    # A unit of one expert goes to the unit of the other whose weights have the largest product.
    likeness = _units(stack, one).T @ _units(stack, other)  # (F, F)
    _, order = linear_sum_assignment(likeness.numpy(), maximize=True)
    units = torch.from_numpy(order)
    # The columns of [gate | up] are those of the units, one section after the other.
    width = stack.w_out.size(1)
    columns = torch.cat([units + width * n for n in range(stack.activation.columns)])
    ordered = []
    for name, parameter in stack.named_parameters():
        weight = parameter.data[other]
        if name == "w_in":
            weight = weight[:, columns]
        elif name == "b_in":
            weight = weight[columns]
        elif name == "w_out":
            weight = weight[units]
        ordered.append(weight)
    return ordered


def _units(stack: Stack, expert: int) -> Tensor:
    """The weights of each hidden unit of an expert, a column each (.., F)."""
    sections = stack.w_in[expert].chunk(stack.activation.columns, -1)
    return torch.cat([*sections, stack.w_out[expert].T]).detach()


def draw(figure: Figure, numbers: Numbers) -> None:
    """Two bars a layer."""
    axes = figure.subplots()
    for side, name in ((-0.2, "merged"), (0.2, "without the rarer")):
        places = [layer + side for layer in range(len(numbers[name]))]
        axes.bar(places, numbers[name], 0.4, label=name)
    labels = []
    for layer, (one, other) in enumerate(numbers["pairs"]):
        labels.append(f"layer {layer}\n{one} and {other}")
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel="nats per token more")
    axes.legend()
