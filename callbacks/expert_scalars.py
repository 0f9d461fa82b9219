"""How even is the load and how sure are the routers, as numbers; every `trainer.log_every` steps.

What is said of the load is of all training tokens since the last time, what is said of scores and logits is of the
tokens of the step that is written. `val_experts/...` is of the last validation.
"""

import lightning
import torch
from torch import Tensor

from app.registry import register
from app.training.metrics import Total, dead_experts, load_sums, max_violation, routing_statistics, token_sums
from app.training.module import Batch, LanguageModel
from app.training.tags import Tag
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import logs, write_by_layer
from routers.contract import Routing

ROUTER = ("mean_k", "token_entropy", "margin", "logit_rms", "z")  # written under `router/`


@register("callback")
class ExpertScalars(RoutingCallback):
    """Writes how even the load is and how sure the routers are, every `trainer.log_every` steps."""

    tags = (
        Tag("experts/load_min", "load of the least loaded expert", "multiples of the even load", by_layer=True),
        Tag("experts/load_median", "load of the median expert", "multiples of the even load", by_layer=True),
        Tag("experts/load_max", "load of the most loaded expert", "multiples of the even load", by_layer=True),
        Tag("experts/load_cv", "standard deviation of the load over its mean", by_layer=True),
        Tag("experts/load_entropy", "entropy of the load", "nats", by_layer=True),
        Tag("experts/effective_experts", "exponential of the entropy of the load", "experts", by_layer=True),
        Tag("experts/importance_max", "largest sum of an expert's gates", "multiples of the mean", by_layer=True),
        Tag("experts/importance_cv", "standard deviation of these sums over their mean", by_layer=True),
        Tag("experts/maxvio", "largest over mean load, minus 1", by_layer=True),
        Tag("experts/maxvio_micro", "the same inside one micro-batch", scope="mean over micro-batches", by_layer=True),
        Tag("experts/dead", "experts without a token", "experts", by_layer=True),
        Tag("experts/drop_rate", "share of the assignments that a full expert did not compute", "0..1", by_layer=True),
        Tag("router/mean_k", "experts of a token, before the drop", "experts", by_layer=True),
        Tag("router/token_entropy", "entropy of a token's normalised scores", "nats", by_layer=True),
        Tag("router/margin", "between a token's two largest normalised scores", by_layer=True),
        Tag("router/logit_rms", "root mean square of the logits", by_layer=True),
        Tag("router/z", "mean square of the logits' log-sum-exp", by_layer=True),
        Tag("val_experts/maxvio", "largest over mean load, minus 1", by_layer=True),
        Tag("val_experts/dead", "experts without a token", "experts", by_layer=True),
    )

    kept = ("total",)

    def __init__(self) -> None:
        self.total = Total()
        self.due = False  # whether the current step is written

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self.due = logs(trainer, trainer.global_step + 1)

    def on_training_routings(self, routings: list[Routing], batch: Batch) -> None:
        self.total.add(load_sums(routings))
        if self.due:
            self.total.add(token_sums(routings))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object) -> None:
        if not self.due:
            return
        sums = self.total.take()
        if not sums:
            return
        statistics = routing_statistics(sums)
        write_by_layer(trainer, "router", {name: statistics[name] for name in ROUTER})
        write_by_layer(trainer, "experts", {name: value for name, value in statistics.items() if name not in ROUTER})

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        load: Tensor = pl_module.validation["load"]
        if load.numel():
            write_by_layer(trainer, "val_experts", {"maxvio": max_violation(load), "dead": dead_experts(load)})
