"""Do tokens still change their experts? After every validation, against the one before, on the same tokens.

    specialisation/routing_change   share of the assignments that the validation before did not have: 0 settled, and
                                    1 - K/E for a routing that has forgotten everything

Global over ranks; the mean over layers, and `specialisation_by_layer/routing_change/LAYER`. Of every validation batch
the first `rows` rows are remembered.
"""

import lightning
import torch
from torch import Tensor

from app.registry import register, require
from app.specialisation import chosen
from app.training import Batch
from callbacks.watcher import Watcher, write_by_layer
from routers.contract import Routing, rank_sum


@register("callback")
class RoutingChange(Watcher):
    """Raises ValueError if `rows` is not positive."""

    def __init__(self, *, rows: int) -> None:
        require("rows", rows, rows >= 1, "must be at least 1")
        self.rows = rows
        self.now: list[Tensor] = []
        self.before: list[Tensor] = []  # (L, T, E) bool for each validation batch

    def watch_validation(self, routings: list[Routing], batch: Batch) -> None:
        tokens = self.rows * batch["tokens"].size(1)
        self.now.append(torch.stack([chosen(routing)[:tokens] for routing in routings]))

    @torch.no_grad()
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        now, before = self.now, self.before
        self.now, self.before = [], now
        if not now or len(now) != len(before):
            return
        new = sum((a & ~b).sum((1, 2)) for a, b in zip(now, before, strict=True))
        sums = rank_sum(torch.stack((torch.as_tensor(new), torch.as_tensor(sum(a.sum((1, 2)) for a in now)))).double())
        write_by_layer(trainer, "specialisation", {"routing_change": sums[0] / sums[1].clamp_min(1)})
