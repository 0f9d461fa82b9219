"""How sure are the routers, and does a layer know what the one below chose?

Qiu et al. 2024, arXiv 2408.06793, table 8 and appendix A.4: the entropy of the gates over all
experts; inner balance, the first probability over the second, and outer balance, the sum of the
first k, both as medians over the tokens; and the mutual information of two layers, of their first
choices, and by RMoE's definition over the experts of one token.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.analysis.experiments.observe import Numbers, passes
from app.analysis.specialisation import (
    first_choice,
    joint_choice,
    mutual_information,
    rmoe_information,
)
from app.data.corpus import Batch
from app.runs.read import TrainedRun
from routers.contract import Routing

Pair = tuple[int, int]
TITLE = "How sure the routers are"
READING = (
    "Low entropy, a large inner balance (first over second probability) and an outer one near 1 "
    "(all k together) mean that a router is sure; the map shows what one layer's choice tells of "
    "another's (RMoE, table 8: 2.0 and 0.57 against 35 and 0.92 of a linear router)."
)


def measure(run: TrainedRun, batches: Sequence[Batch]) -> Numbers | None:
    """Per layer, and per pair of layers (L, L); None with one expert."""
    if run.model.num_experts < 2:
        return None
    certainties: list[list[Tensor]] = []
    joint: dict[Pair, Tensor] = {}
    rmoe: dict[Pair, Tensor] = {}
    tokens = 0
    for _, _, routings in passes(run, batches):
        certainties.append([_certainty(routing) for routing in routings])
        tokens += int(routings[0].valid.sum())
        for i, j in combinations(range(len(routings)), 2):
            counts = _joint(routings[i], routings[j])
            nats = rmoe_information(routings[i], routings[j])
            joint[i, j] = joint[i, j] + counts if (i, j) in joint else counts
            rmoe[i, j] = rmoe[i, j] + nats if (i, j) in rmoe else nats
    by_layer = [torch.cat(layer, 1) for layer in zip(*certainties, strict=True)]  # (3, T') each
    information = {pair: float(mutual_information(counts)) for pair, counts in joint.items()}
    rmoe_means = {pair: float(total / tokens) for pair, total in rmoe.items()}
    return {
        "entropy": [entropy.mean().item() for entropy, _, _ in by_layer],
        "inner_balance": [inner.median().item() for _, inner, _ in by_layer],
        "outer_balance": [outer.median().item() for _, _, outer in by_layer],
        "information": _square(information, len(by_layer)),
        "rmoe_information": _square(rmoe_means, len(by_layer)),
    }


def _certainty(routing: Routing) -> Tensor:
    """Entropy, inner and outer balance of every real token (3, T')."""
    share = routing.probabilities[routing.valid.flatten()].double()
    largest = share.topk(max(2, routing.top_k), -1).values
    entropy = torch.special.entr(share).sum(-1)
    inner = largest[:, 0] / largest[:, 1].clamp_min(1e-9)
    outer = largest[:, : routing.top_k].sum(-1)
    return torch.stack((entropy, inner, outer))


def _joint(one: Routing, other: Routing) -> Tensor:
    return joint_choice(first_choice(one), first_choice(other), one.logits.size(1))


def _square(values: dict[Pair, float], layers: int) -> list[list[float | None]]:
    """A symmetric matrix (L, L) without its diagonal."""
    matrix: list[list[float | None]] = [[None] * layers for _ in range(layers)]
    for (i, j), value in values.items():
        matrix[i][j] = value
        matrix[j][i] = value
    return matrix


def draw(figure: Figure, numbers: Numbers) -> None:
    """Three lines over the layers, and a map of layer and layer."""
    *lines, info = figure.subplots(1, 4)
    for axes, name in zip(lines, ("entropy", "inner_balance", "outer_balance"), strict=True):
        axes.plot(numbers[name], marker="o")
        axes.set(title=name.replace("_", " "), xlabel="layer", xticks=range(len(numbers[name])))
    # None becomes NaN, which is left white.
    cells = np.array(numbers["information"], dtype=float)
    image = info.imshow(cells, vmin=0)
    info.set(title="information, nats", xlabel="layer", ylabel="layer")
    figure.colorbar(image, ax=info)
