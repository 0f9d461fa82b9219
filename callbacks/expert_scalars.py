"""How even is the load and how sure are the routers, as numbers.

Written every `trainer.log_every` steps, over all ranks and micro-batches, as the mean over layers (`experts/NAME`) and
for each layer (`experts_by_layer/NAME/LAYER`). What is said of the load is of all training tokens since the last time,
what is said of scores and logits is of the tokens of the step that is written.

    load_min load_median load_max   of an expert, as multiples of the even load
    load_cv  importance_cv          standard deviation over mean; importance is the sum of an expert's gates
    importance_max                  as a multiple of the mean
    load_entropy effective_experts  nats, and its exponential
    maxvio                          largest over mean load, minus 1
    maxvio_micro                    the same inside one micro-batch: a mean over micro-batches; all others are global
    dead                            experts without a token
    drop_rate                       share of the assignments that a full expert did not compute
    router/mean_k                   experts of a token, before the drop
    router/token_entropy            nats of a token's normalised scores
    router/margin                   between its two largest
    router/logit_rms  router/z      size of the logits; mean square of their log-sum-exp
    val_experts/maxvio  val_experts/dead    of the last validation
"""

import lightning
import torch
from torch import Tensor

from app.metrics import Total, dead_experts, load_sums, max_violation, routing_statistics, token_sums
from app.registry import register
from app.training import Batch, LanguageModel
from callbacks.watcher import Watcher, logs, write_by_layer
from routers.contract import Routing

ROUTER = ("mean_k", "token_entropy", "margin", "logit_rms", "z")  # written under `router/`


@register("callback")
class ExpertScalars(Watcher):
    """Nothing to choose: `trainer.log_every` says when."""

    def __init__(self) -> None:
        self.total = Total()
        self.due = False  # is the step that goes on one that is written?

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        self.due = logs(trainer, trainer.global_step + 1)

    def watch_training(self, routings: list[Routing], batch: Batch) -> None:
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
        load: Tensor = pl_module.validation_load
        if load.numel():
            write_by_layer(trainer, "val_experts", {"maxvio": max_violation(load), "dead": dead_experts(load)})
