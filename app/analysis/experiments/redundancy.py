"""Do two experts know the same? Two of a layer exchange their tokens,
under the gates that the router gave them.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.intervene import moe_layers, redirected
from app.analysis.experiments.observe import Numbers
from app.analysis.experiments.panels import maps
from app.analysis.likelihood import evaluate
from app.analysis.specialisation import weight_similarities
from app.data.corpus import Batch
from app.model.moe import MoE
from app.runs.read import TrainedRun
from app.training.messages import watched

TITLE = "Two experts exchanged"
READING = (
    "Nats per token lost when two experts do each other's work: a cell without colour is a pair "
    "that knows the same, of which one is redundant. Where there are many experts only the pairs "
    "of the most similar weights are tried."
)
# of a layer that are tried
PAIRS = 32


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """The rise in nats of each exchange (L, E, E), None where it was not tried;
    None with one expert.
    """
    layers = moe_layers(run.model)
    num_experts = run.model.num_experts
    if num_experts < 2:
        return None
    before = evaluate(run.model, batches, run.text.domains)["nats"]
    rise: list[list[list[float | None]]] = [
        [[None] * num_experts for _ in range(num_experts)] for _ in layers
    ]
    tried = [
        (place, *pair)
        for place, layer in enumerate(layers)
        for pair in most_similar(layer, num_experts)
    ]
    for place, one, other in watched(tried, TITLE):
        with redirected(layers[place], exchange(one, other, num_experts)):
            after = evaluate(run.model, batches, run.text.domains)["nats"]
        rise[place][one][other] = rise[place][other][one] = after - before
    return {"rise": rise}


def most_similar(layer: MoE, num_experts: int) -> list[tuple[int, int]]:
    """Pairs of experts, those of the most similar weights first where these compare;
    at most `PAIRS`.
    """
    similar = weight_similarities(layer.experts)
    pairs = list(combinations(range(num_experts), 2))
    if similar is not None and len(similar) == num_experts:
        pairs.sort(key=lambda pair: -float(similar[pair]))
    return pairs[:PAIRS]


def exchange(one: int, other: int, num_experts: int) -> Tensor:
    """Who does whose work (E,), for `redirected`."""
    to = torch.arange(num_experts)
    to[one], to[other] = other, one
    return to


def draw(figure: Figure, numbers: Numbers) -> None:
    """A map of expert and expert for each layer."""
    rise = [
        [[torch.nan if cell is None else cell for cell in row] for row in layer]
        for layer in numbers["rise"]
    ]
    maps(figure, torch.tensor(rise), [], "expert", "nats per token more")
