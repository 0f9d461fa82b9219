"""Does a layer's choice tell the choice of another? After every `every`-th validation.

The first measure takes all validation tokens; with few of them it is biased upwards by about
(E-1)^2 / 2T. RMoE's takes the first `rows` rows of every batch. Neither measures quality: it is
high for routers that are worse.
"""

import math
from itertools import combinations

import lightning
import torch

from app.analysis.specialisation import (
    first_choice,
    joint_choice,
    mutual_information,
    rmoe_information,
)
from app.registry import register, require
from app.training.metrics import Total
from app.training.module import Batch
from app.training.tags import Tag
from callbacks import draw
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import event_writer, step_of, write
from routers.contract import Routing


@register("callback")
class LayerInformation(RoutingCallback):
    """Writes and draws what the choice of one layer tells of another's.

    Args:
        every: validations between two points; at least 1.
        rows: of each validation batch that RMoE's definition is computed on; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "specialisation/layer_information",
            "mutual information of the first choices of two layers; mean over pairs",
            "nats",
        ),
        Tag(
            "specialisation/rmoe_layer_information",
            "RMoE's definition, over the experts of one token; mean over pairs",
            "nats",
        ),
        Tag(
            "specialisation/layer_information",
            "layer x layer, coloured from 0 to ln E",
            "nats",
            "image",
        ),
    )

    kept = ("looks",)

    def __init__(self, *, every: int, rows: int) -> None:
        require("every", every, every >= 1, "must be at least 1")
        require("rows", rows, rows >= 1, "must be at least 1")
        self.every = every
        self.rows = rows
        self.looks = 0
        self.total = Total()

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        if self.looks % self.every or len(routings) < 2:
            return
        num_experts = routings[0].logits.size(1)
        first = [first_choice(routing) for routing in routings]
        head = [_head(routing, self.rows) for routing in routings]
        pairs = list(combinations(range(len(routings)), 2))
        self.total.add(
            {
                "joint": torch.stack(
                    [joint_choice(first[i], first[j], num_experts) for i, j in pairs]
                ),
                "rmoe": torch.stack([rmoe_information(head[i], head[j]) for i, j in pairs]),
                "tokens": head[0].valid.sum(),
            }
        )

    @torch.no_grad()
    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.looks += 1
        sums = self.total.take()
        if not sums:
            return
        information = mutual_information(sums["joint"])  # (pairs,)
        rmoe = sums["rmoe"] / sums["tokens"].clamp_min(1)
        means = {"layer_information": information.mean(), "rmoe_layer_information": rmoe.mean()}
        write(trainer, {f"specialisation/{name}": value for name, value in means.items()})
        writer = event_writer(trainer)
        if writer is not None:
            num_experts = sums["joint"].size(-1)
            drawn = draw.heat_map(
                square(information),
                title=f"What one layer's choice tells of another's, step {step_of(trainer)}",
                rows="MoE layer",
                columns="MoE layer",
                unit="mutual information, nats (top: ln E)",
                top=math.log(max(2, num_experts)),
            )
            draw.publish(writer, "specialisation/layer_information", drawn, step_of(trainer))


def square(pairs: torch.Tensor) -> torch.Tensor:
    """Values of the pairs (0, 1), (0, 2), ... as a symmetric matrix (L, L), NaN on its diagonal."""
    layers = round((1 + math.sqrt(1 + 8 * len(pairs))) / 2)
    matrix = pairs.new_full((layers, layers), torch.nan)
    for value, (i, j) in zip(pairs, combinations(range(layers), 2), strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _head(routing: Routing, rows: int) -> Routing:
    valid = routing.valid[:rows]
    return routing._replace(probabilities=routing.probabilities[: valid.numel()], valid=valid)
