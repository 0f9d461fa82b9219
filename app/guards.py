"""Guards of a run: a step that is not finite changes nothing, and what looks wrong is said.

A step that is passed over counts as a step: the schedule and the rows go on, so it is neither repeated nor shifts what
follows, and a resumed run passes over the same. Optimizer and controllers keep their state.
"""

import sys
from collections import deque
from collections.abc import Callable
from statistics import fmean, pstdev
from typing import Any

import lightning
import torch
from torch import Tensor, distributed, nn

from app.metrics import dead_experts
from app.parallel import is_first_rank, whole
from app.registry import UserError
from app.transformer import Transformer
from routers.contract import Routing, load, rank_sum

WINDOW = 100  # steps that a loss is compared with
FEWEST = 20  # below it their deviation says nothing


def warn(text: str) -> None:
    """One line, of the first rank only; Hydra has silenced the log."""
    if is_first_rank():
        print(f"warning: {text}", file=sys.stderr)


class BadSteps:
    """Counts the steps that are passed over because their loss or gradient is not finite; `allowed` in a run."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.count = allowed, 0

    def meet(self, model: Transformer, step: int, again: Callable[[], Any]) -> None:
        """Passes over one more; `again` repeats the forward passes of the step. Called on all ranks.

        Raises:
            UserError: too many; the line names what was not finite.
        """
        what = culprit(model, again)
        self.count += 1
        if self.count > self.allowed:
            raise UserError(
                f"step {step}: {what} is not finite; the checkpoints are from before. Lower optimizer.lr, or go on "
                f"with resume=true trainer.skip_bad_steps={self.count} to pass over this step"
            )
        warn(f"step {step}: {what} is not finite; passed over ({self.count} of {self.allowed})")


@torch.no_grad()
def culprit(model: nn.Module, again: Callable[[], Any]) -> str:
    """What was not finite first, a weight, the output of a layer or a gradient; by its name."""
    weights = _not_finite(dict(model.named_parameters()))
    gradients = _not_finite({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    outputs = _gathered(_outputs(model, again))
    if weights:
        return f"the weight {weights[0]}"
    if outputs:
        return f"the output of {outputs[0]}"
    return f"the gradient of {gradients[-1]}" if gradients else "the loss"  # the last is nearest to the loss


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    found = []
    for name, value in tensors.items():
        bad = (~whole(value.detach()).isfinite()).nonzero()
        if len(bad):
            found.append(f"{name}[{bad[0, 0]}]" if value.dim() == 3 else name)  # which expert of a stack
    return found


def _outputs(model: nn.Module, again: Callable[[], Any]) -> list[str]:
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        first = output[0] if type(output) is tuple else output  # a Routing may hold -inf: an expert that is forbidden
        if isinstance(first, Tensor) and first.is_floating_point() and not first.isfinite().all():
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    again()
    for hook in hooks:
        hook.remove()
    return found


def _gathered(names: list[str]) -> list[str]:
    """Those of all ranks, one rank after the other."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return names
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, names)
    return [name for rank in every for name in rank]


class Watch(lightning.Callback):
    """Warns of a loss that jumps and of routers that use few of their experts.

    Args:
        spike_deviations: how many standard deviations above the mean of the last 100 steps a loss is worth a line;
            null: none is.
        dead_steps: how many steps more than half of a layer's experts must have got nothing for; null: no line.
    """

    def __init__(self, spike_deviations: float | None, dead_steps: int | None) -> None:
        self.deviations, self.dead_steps = spike_deviations, dead_steps
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.load: Tensor | None = None  # (L, E) of this rank since the last look

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.dead_steps is not None:
            pl_module.watchers.append(lambda routings, batch: self._observe(pl_module.training, routings))

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if self.deviations is not None and "train/loss" in trainer.callback_metrics:
            self._compare(float(trainer.callback_metrics["train/loss"]), self.deviations, step)
        if self.dead_steps is not None and step % self.dead_steps == 0 and self.load is not None:
            self._count(rank_sum(self.load), step)
            self.load = None

    def _observe(self, training: bool, routings: list[Routing]) -> None:
        if training and routings:
            loads = load(routings)
            self.load = loads if self.load is None else self.load + loads

    def _compare(self, loss: float, deviations: float, step: int) -> None:
        if len(self.losses) >= FEWEST:
            mean, deviation = fmean(self.losses), pstdev(self.losses)
            if loss > mean + deviations * deviation:
                warn(f"step {step}: the loss jumped to {loss:.3f}, from {mean:.3f} in the steps before")
        self.losses.append(loss)

    def _count(self, loads: Tensor, step: int) -> None:
        for layer, dead in enumerate(dead_experts(loads).tolist()):
            if 2 * dead > loads.size(1):
                warn(f"step {step}: router {layer} gave nothing to {dead} of {loads.size(1)} experts for "
                     f"{self.dead_steps} steps; raise the weight of a balance term")  # fmt: skip
