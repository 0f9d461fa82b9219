"""What is lost with each expert? Each of them is taken away in turn, in one layer,
and the others work in its place.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.intervene import forbidden, moe_layers
from app.analysis.experiments.observe import Numbers
from app.analysis.experiments.panels import maps
from app.analysis.likelihood import evaluate
from app.data.corpus import Batch
from app.runs.read import TrainedRun
from app.training.messages import watched

TITLE = "Without one expert"
READING = (
    "Bits per byte that each domain loses with an expert: a column that is dark in one row is the "
    "specialist of that domain, a column without colour is an expert that nobody would miss."
)


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """The rise in bits per byte (L, E, domains) of those that the batches have;
    None with one expert.
    """
    layers = moe_layers(run.model)
    num_experts = run.model.num_experts
    if num_experts < 2:
        return None
    before = _by_domain(run, batches)
    rise = []
    for layer, expert in watched(list(product(layers, range(num_experts))), TITLE):
        with forbidden([layer], partial(only, expert)):
            after = _by_domain(run, batches)
        rise.append([after[domain] - before[domain] for domain in before])
    return {
        "domains": [*before],
        "rise": torch.tensor(rise).view(len(layers), num_experts, len(before)).tolist(),
    }


def only(expert: int, logits: Tensor) -> Tensor:
    """This expert, of every token: (T, E) bool."""
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[:, expert] = True
    return mask


def _by_domain(run: TrainedRun, batches: Sequence[Batch]) -> dict[str, float]:
    found = evaluate(run.model, batches, run.text.domains)
    return {
        domain: found[f"bpb_{domain}"] for domain in run.text.domains if f"bpb_{domain}" in found
    }


def draw(figure: Figure, numbers: Numbers) -> None:
    """A map of domain and expert for each layer."""
    rise = torch.tensor(numbers["rise"]).transpose(1, 2)  # (L, domains, E)
    maps(figure, rise, numbers["domains"], "", "bits per byte more")
