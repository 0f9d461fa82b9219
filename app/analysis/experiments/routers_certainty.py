"""How sure are the routers, and does a layer know what the one below chose?

Qiu et al. 2024, arXiv 2408.06793, table 8 and appendix A.4: the entropy of the gates over all
experts; inner balance, the first probability over the second, and outer balance, the sum of the
first k, both as medians over the tokens; and the mutual information of two layers, of their first
choices, and by RMoE's definition over the experts of one token.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.observe import passes
from app.analysis.specialisation import (
    first_choice,
    joint_choice,
    mutual_information,
    rmoe_information,
)
from app.data.corpus import Batch
from app.runs.read import TrainedRun
from routers.contract import Routing

TITLE = "How sure the routers are"
READING = (
    "Low entropy, a large inner balance (first over second probability) and an outer one near 1 "
    "(all k together) mean "
    "that a router is sure; the map shows what one layer's choice tells of another's (RMoE, "
    "table 8: 2.0 and 0.57 "
    "against 35 and 0.92 of a linear router)."
)


def measure(run: TrainedRun, batches: Sequence[Batch]) -> dict[str, Any] | None:
    """Per layer, and per pair of layers (L, L); None with one expert."""
    num_experts = run.model.num_experts
    if num_experts < 2:
        return None
    seen = [routings for _, _, routings in passes(run, batches)]
    by_layer = [
        torch.cat([_certainty(routing) for routing in layer], 1)
        for layer in zip(*seen, strict=True)
    ]
    pairs = list(combinations(range(len(by_layer)), 2))
    tokens = sum(int(routings[0].valid.sum()) for routings in seen)
    joint = {
        (i, j): torch.stack([_joint(each[i], each[j]) for each in seen]).sum(0) for i, j in pairs
    }
    rmoe = {
        (i, j): torch.stack([rmoe_information(each[i], each[j]) for each in seen]).sum()
        for i, j in pairs
    }
    return {
        "entropy": [values[0].mean().item() for values in by_layer],
        "inner_balance": [values[1].median().item() for values in by_layer],
        "outer_balance": [values[2].median().item() for values in by_layer],
        "information": _square(
            {pair: mutual_information(counts) for pair, counts in joint.items()}, len(by_layer)
        ),
        "rmoe_information": _square(
            {pair: total / tokens for pair, total in rmoe.items()}, len(by_layer)
        ),
    }


def _certainty(routing: Routing) -> Tensor:
    """Entropy, inner and outer balance of every real token (3, T')."""
    share = routing.probabilities[routing.valid.flatten()].double()
    best = share.topk(max(2, routing.top_k), -1).values
    inner = best[:, 0] / best[:, 1].clamp_min(1e-9)
    return torch.stack((torch.special.entr(share).sum(-1), inner, best[:, : routing.top_k].sum(-1)))


def _joint(one: Routing, other: Routing) -> Tensor:
    return joint_choice(first_choice(one), first_choice(other), one.logits.size(1))


def _square(pairs: dict[tuple[int, int], Tensor], layers: int) -> list[list[float | None]]:
    """A symmetric matrix (L, L) without its diagonal."""
    each = {pair: float(value) for pair, value in pairs.items()}
    return [[each.get((min(i, j), max(i, j))) for j in range(layers)] for i in range(layers)]


def draw(figure: Figure, numbers: dict[str, Any]) -> None:
    """Three lines over the layers, and a map of layer and layer."""
    *lines, info = figure.subplots(1, 4)
    for axes, name in zip(lines, ("entropy", "inner_balance", "outer_balance"), strict=True):
        axes.plot(numbers[name], marker="o")
        axes.set(title=name.replace("_", " "), xlabel="layer", xticks=range(len(numbers[name])))
    cells = torch.tensor(
        [[torch.nan if v is None else v for v in row] for row in numbers["information"]]
    )
    image = info.imshow(cells.numpy(), vmin=0)
    info.set(title="information, nats", xlabel="layer", ylabel="layer")
    figure.colorbar(image, ax=info)
