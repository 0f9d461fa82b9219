"""The spread of the load and of the number of experts per token, every `trainer.log_every` steps.

    experts/load_p10 load_p25 load_p75 load_p90   percentiles over the experts, multiples of the even load
    router/k_p5 k_p50 k_p95 k_max                 percentiles over tokens of a token's number of experts

Global, over the training tokens since the last time; the mean over layers, and `..._by_layer/NAME/LAYER`.
"""

from typing import Any

import lightning
import torch

from app.metrics import Total, uniform_multiple
from app.registry import register
from app.specialisation import quantile_of_counts, tokens_by_k
from app.training import Batch
from callbacks.watcher import Watcher, logs, write_by_layer
from routers.contract import Routing, load

LOAD = {"load_p10": 0.1, "load_p25": 0.25, "load_p75": 0.75, "load_p90": 0.9}
EXPERTS = {"k_p5": 0.05, "k_p50": 0.5, "k_p95": 0.95, "k_max": 1.0}


@register("callback")
class Utilisation(Watcher):
    """Nothing to choose: `trainer.log_every` says when."""

    def __init__(self) -> None:
        self.total = Total()

    def watch_training(self, routings: list[Routing], batch: Batch) -> None:
        self.total.add({"load": load(routings), "k": torch.stack([tokens_by_k(routing) for routing in routings])})

    @torch.no_grad()
    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        if not logs(trainer):
            return
        sums = self.total.take()
        if sums:
            relative = uniform_multiple(sums["load"])
            write_by_layer(trainer, "experts", {name: relative.quantile(q, dim=-1) for name, q in LOAD.items()})
            write_by_layer(trainer, "router", {name: quantile_of_counts(sums["k"], q) for name, q in EXPERTS.items()})
