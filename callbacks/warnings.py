"""What looks wrong is said at once: a loss that jumps, a router that uses few of its experts,
logits that explode.

One line each on the terminal. Writes no metric.
"""

from statistics import fmean, pstdev

import lightning
import torch
from torch import Tensor

from app.registry import register, require
from app.training.messages import warn
from app.training.metrics import Total, dead_experts, load_entropy
from app.training.module import Batch, LanguageModel
from callbacks.routing_callback import RoutingCallback
from routers.assignments import expert_load
from routers.contract import Routing

# steps that a loss is compared with
WINDOW = 100
# below it their deviation says nothing
FEWEST = 20


@register("callback")
class Warnings(RoutingCallback):
    """Warns of losses far above those of the last 100 steps, of routers that starve experts, and of
    vast logits.

    Args:
        spike_deviations: how many standard deviations above the mean of those steps a loss gets a
            line; above 0, or null: no line.
        dead_steps: how many steps more than half of a layer's experts must have got nothing for,
            and that the next two are looked at over; at least 1, or null: no line.
        effective_share: of a layer's experts, below which the exponential of the entropy of the
            load is called a collapse where more could work; in 0..1.
        logit_rms: root mean square of a router's logits above which they are said to explode; above
            0.

    Raises:
        ValueError: a number is out of range.
    """

    kept = ("losses", "unread", "total")

    def __init__(
        self,
        *,
        spike_deviations: float | None,
        dead_steps: int | None,
        effective_share: float,
        logit_rms: float,
    ) -> None:
        allowed = spike_deviations is None or spike_deviations > 0
        require("spike_deviations", spike_deviations, allowed, "must be positive, or null")
        require(
            "dead_steps",
            dead_steps,
            dead_steps is None or dead_steps >= 1,
            "must be at least 1, or null",
        )
        require("effective_share", effective_share, 0 <= effective_share <= 1, "must be in 0..1")
        require("logit_rms", logit_rms, logit_rms > 0, "must be positive")
        self.deviations = spike_deviations
        self.dead_steps = dead_steps
        self.effective_share = effective_share
        self.logit_rms = logit_rms
        self.losses: list[float] = []
        # since the last log step: the host waits for the device only there
        self.unread: list[Tensor] = []
        # load (L, E) and squares of logits (L,) since the last look
        self.total = Total()

    def on_training_routings(self, routings: list[Routing], batch: Batch) -> None:
        if self.dead_steps is not None:
            allowed = [~routing.logits.isinf() for routing in routings]
            squares = [
                routing.logits.where(a, 0).square().sum()
                for routing, a in zip(routings, allowed, strict=True)
            ]
            logits = {
                "squares": torch.stack(squares),
                "logits": torch.stack([each.sum() for each in allowed]),
            }
            self.total.add({"load": expert_load(routings)} | logits)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        step = trainer.global_step
        if self.deviations is not None:
            assert isinstance(pl_module, LanguageModel)
            self.unread.append(pl_module.local_loss)
            if step % trainer.log_every_n_steps == 0 or step == trainer.max_steps:  # type: ignore[attr-defined]
                self.read(step, self.deviations)
        if self.dead_steps is not None and step % self.dead_steps == 0:
            sums = self.total.take()
            if sums:
                self.check_load(sums["load"], step)
                self.check_logits((sums["squares"] / sums["logits"].clamp_min(1)).sqrt(), step)

    def read(self, step: int, deviations: float) -> None:
        """Looks at the losses of this rank up to this step."""
        losses = [float(loss) for loss in self.unread]
        self.unread = []
        for i, loss in enumerate(losses):
            self.check_loss(loss, deviations, step - len(losses) + 1 + i)

    def check_loss(self, loss: float, deviations: float, step: int) -> None:
        """Warns of the loss of this step if it is far above those before."""
        if len(self.losses) >= FEWEST:
            mean = fmean(self.losses)
            deviation = pstdev(self.losses)
            if loss > mean + deviations * deviation:
                warn(
                    f"step {step}: the loss jumped to {loss:.3f}, from {mean:.3f} in the steps "
                    "before"
                )
        self.losses = [*self.losses, loss][-WINDOW:]

    def check_load(self, load: Tensor, step: int) -> None:
        """Warns of the layers of load (L, E) more than half of whose experts got nothing,
        or few nearly everything.
        """
        effective = load_entropy(load).exp().tolist()
        for layer, (dead, working) in enumerate(
            zip(dead_experts(load).tolist(), effective, strict=True)
        ):
            if 2 * dead > load.size(1):
                warn(
                    f"step {step}: router {layer} gave nothing to {dead} of {load.size(1)} experts "
                    f"for {self.dead_steps} steps; raise the weight of a balance term"
                )
            elif working < self.effective_share * load.size(1):
                warn(
                    f"step {step}: router {layer} has collapsed: its load is as uneven as if "
                    f"{working:.1f} of {load.size(1)} experts worked; raise the weight of a "
                    "balance term"
                )

    def check_logits(self, rms: Tensor, step: int) -> None:
        """Warns of the layers whose logits have this root mean square (L,) above the limit."""
        for layer, size in enumerate(rms.tolist()):
            if size > self.logit_rms:
                warn(
                    f"step {step}: the logits of router {layer} explode (root mean square "
                    f"{size:.0f}); add z_loss to balance, or lower optimizer.router_lr_factor"
                )
