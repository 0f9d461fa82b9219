"""Do tokens still change their experts? After every validation, against the one before, on the same
tokens.

Of every validation batch the first `rows` rows are remembered.
"""

from typing import Any

import lightning
import torch
from torch import Tensor

from app.analysis.specialisation import chosen
from app.registry import register, require
from app.training.module import Batch
from app.training.tags import Tag
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import write_by_layer
from routers.collectives import gathered, num_ranks, rank, rank_sum
from routers.contract import Routing


@register("callback")
class RoutingChange(RoutingCallback):
    """Writes how many tokens have changed their experts since the validation before.

    Args:
        rows: of each validation batch that are remembered; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "specialisation/routing_change",
            "share of the assignments that the validation before did not have; 1 - K/E: all is "
            "forgotten",
            "0..1",
            by_layer=True,
        ),
    )

    def __init__(self, *, rows: int) -> None:
        require("rows", rows, rows >= 1, "must be at least 1")
        self.rows = rows
        self.now: list[Tensor] = []
        self.before: list[Tensor] = []  # (L, T, E) bool for each validation batch

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        tokens = self.rows * batch["tokens"].size(1)
        self.now.append(torch.stack([chosen(routing)[:tokens] for routing in routings]))

    def state_dict(self) -> dict[str, object]:
        # of every rank: each validates other rows
        return {"before": gathered(self.before)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if len(state_dict["before"]) == num_ranks():
            self.before = state_dict["before"][rank()]

    @torch.no_grad()
    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        now = self.now
        before = self.before
        self.now = []
        self.before = now
        if not now or len(now) != len(before):
            return
        new = sum((a & ~b.to(a.device)).sum((1, 2)) for a, b in zip(now, before, strict=True))
        sums = rank_sum(
            torch.stack(
                (torch.as_tensor(new), torch.as_tensor(sum(a.sum((1, 2)) for a in now)))
            ).double()
        )
        write_by_layer(
            trainer, "specialisation", {"routing_change": sums[0] / sums[1].clamp_min(1)}
        )
