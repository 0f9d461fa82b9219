"""How even is the load and how sure are the routers, as numbers; every `trainer.log_every` steps.

What is said of the load is of all training tokens since the last time, what is said of scores and
logits is of the tokens of the step that is written. `val_experts/...` is of the last validation.
"""

import lightning
import torch
from torch import Tensor

from app.registry import register
from app.training.metrics import (
    STATISTICS,
    Total,
    dead_experts,
    group_of,
    load_sums,
    max_violation,
    routing_statistics,
    token_sums,
)
from app.training.module import Batch, LanguageModel
from app.training.tags import Tag
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import logs, write_by_layer
from routers.contract import Routing


@register("callback")
class ExpertScalars(RoutingCallback):
    """Writes how even the load is and how sure the routers are, every `trainer.log_every` steps."""

    tags = (
        *(
            Tag(
                f"{group_of(name)}/{name}",
                meaning,
                unit,
                scope="mean over micro-batches" if name == "maxvio_micro" else "global",
                by_layer=True,
            )
            for name, (meaning, unit) in STATISTICS.items()
        ),
        *(
            Tag(f"val_experts/{name}", *STATISTICS[name], by_layer=True)
            for name in ("maxvio", "dead")
        ),
    )

    kept = ("total",)

    def __init__(self) -> None:
        self.total = Total()
        # whether the current step is written
        self.due = False

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self.due = logs(trainer, trainer.global_step + 1)

    def on_training_routings(self, routings: list[Routing], batch: Batch) -> None:
        self.total.add(load_sums(routings))
        if self.due:
            self.total.add(token_sums(routings))

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if not self.due:
            return
        sums = self.total.take()
        if not sums:
            return
        statistics = routing_statistics(sums)
        for group in ("router", "experts"):
            own = {name: value for name, value in statistics.items() if group_of(name) == group}
            write_by_layer(trainer, group, own)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        load: Tensor = pl_module.validation["load"]
        if load.numel():
            write_by_layer(
                trainer, "val_experts", {"maxvio": max_violation(load), "dead": dead_experts(load)}
            )
