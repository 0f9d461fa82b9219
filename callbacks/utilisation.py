"""The spread of the load and of the number of experts per token, every `trainer.log_every` steps.

Over the training tokens since the last time.
"""

import lightning
import torch
from torch import nn

from app.analysis.specialisation import quantile_of_counts, tokens_by_k
from app.registry import register
from app.training.metrics import Total, uniform_multiple
from app.training.module import Batch
from app.training.tags import Tag
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import logs, write_by_layer
from routers.assignments import expert_load
from routers.contract import Routing
from routers.router import Router

LOAD = {"load_p10": 0.1, "load_p25": 0.25, "load_p75": 0.75, "load_p90": 0.9}
EXPERTS = {"k_p5": 0.05, "k_p50": 0.5, "k_p95": 0.95, "k_max": 1.0}


@register("callback")
class Utilisation(RoutingCallback):
    """Writes the spread of the load over experts and, where it differs,
    of the experts per token.
    """

    tags = (
        *(
            Tag(
                f"experts/{name}",
                f"{q:.0%} of the experts have less load",
                "multiples of the even load",
                by_layer=True,
            )
            for name, q in LOAD.items()
        ),
        *(
            Tag(
                f"router/{name}",
                f"{q:.0%} of the tokens have at most so many experts",
                "experts",
                by_layer=True,
            )
            for name, q in EXPERTS.items()
        ),
    )

    kept = ("total",)

    def __init__(self) -> None:
        self.total = Total()

    def on_training_routings(self, routings: list[Routing], batch: Batch) -> None:
        self.total.add(
            {
                "load": expert_load(routings),
                "k": torch.stack([tokens_by_k(routing) for routing in routings]),
            }
        )

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if not logs(trainer):
            return
        sums = self.total.take()
        if sums:
            relative = uniform_multiple(sums["load"])
            write_by_layer(
                trainer, "experts", {name: relative.quantile(q, dim=-1) for name, q in LOAD.items()}
            )
        if sums and varies(pl_module):
            write_by_layer(
                trainer,
                "router",
                {name: quantile_of_counts(sums["k"], q) for name, q in EXPERTS.items()},
            )


def varies(model: nn.Module) -> bool:
    """Whether a router gives some tokens more experts than others."""
    selects = [module.select for module in model.modules() if isinstance(module, Router)]
    return any(select.k is None or select.k != select.max_k for select in selects)
