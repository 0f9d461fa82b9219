"""Which expert of which layer works how much, as pictures; every `every` steps, on all training
tokens since the last.

Load is counted before the drop, and coloured from 0 to `top` in every picture.
"""

from typing import Any

import lightning
import torch

from app.registry import register, require
from app.training.metrics import Total, uniform_multiple
from app.training.module import Batch
from app.training.tags import Tag
from callbacks import draw
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import event_writer, step_of
from routers.assignments import expert_load, importance
from routers.contract import Routing

# of the history; a full history is halved by merging neighbours
COLUMNS = 256


@register("callback")
class ExpertPictures(RoutingCallback):
    """Draws the load of every expert, now and since the start of the run.

    Args:
        every: steps between two pictures; at least 1.
        top: multiple of the even load at the end of the colour scale; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag("experts/load", "load by layer and expert", "multiples of the even load", "image"),
        Tag(
            "experts/load_over_time",
            "load by step and expert for each layer, from the start of the run",
            "multiples of the even load",
            "image",
        ),
        Tag(
            "experts/importance",
            "sum of an expert's gates, by layer and expert",
            "multiples of the mean",
            "image",
        ),
        Tag("experts/load/LAYER", "load of all experts", "multiples of the even load", "histogram"),
    )

    kept = ("total", "steps", "history")

    def __init__(self, *, every: int, top: float) -> None:
        require("every", every, every >= 1, "must be at least 1")
        require("top", top, top > 0, "must be positive")
        self.every = every
        self.top = top
        self.total = Total()
        self.steps: list[int] = []
        self.history: list[torch.Tensor] = []  # (L, E) each

    def on_training_routings(self, routings: list[Routing], batch: Batch) -> None:
        self.total.add({"load": expert_load(routings), "importance": importance(routings)})

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        sums = self.total.take()
        if not sums:
            return
        self.steps.append(step)
        self.history.append(uniform_multiple(sums["load"]).float().cpu())
        if len(self.steps) > COLUMNS:
            self._halve()
        self._publish(trainer, uniform_multiple(sums["importance"]))

    def _halve(self) -> None:
        """Merge neighbours in the history, weighted by their steps;
        an unpaired last column is unchanged.
        """
        widths = [step - before for before, step in zip([0, *self.steps], self.steps, strict=False)]
        steps = []
        history = []
        for i in range(0, len(self.steps) - 1, 2):
            share = widths[i] / (widths[i] + widths[i + 1])
            steps.append(self.steps[i + 1])
            history.append(share * self.history[i] + (1 - share) * self.history[i + 1])
        odd = len(self.steps) % 2
        self.steps = steps + self.steps[len(self.steps) - odd :]
        self.history = history + self.history[len(self.history) - odd :]

    def _publish(self, trainer: lightning.Trainer, mass: torch.Tensor) -> None:
        writer = event_writer(trainer)
        if writer is None:
            return
        now = self.history[-1]
        for layer, values in enumerate(now):
            writer.add_histogram(f"experts/load/{layer}", values, step_of(trainer))
        for tag, values, what, unit in (
            ("load", now, "Load of every expert", draw.LOAD),
            (
                "importance",
                mass,
                "Gates of every expert",
                "sum of the gates, multiples of the mean",
            ),
        ):
            names = {
                "title": f"{what}, step {step_of(trainer)}",
                "rows": "MoE layer",
                "columns": "expert",
                "unit": unit,
            }
            drawn = draw.heat_map(values, **names, top=self.top, loads=True)
            draw.publish(writer, f"experts/{tag}", drawn, step_of(trainer))
        if len(self.steps) > 1:
            draw.publish(writer, "experts/load_over_time", self._over_time(), step_of(trainer))

    def _over_time(self) -> Any:
        maps = list(torch.stack(self.history, -1))  # L times (E, steps)
        return draw.panels(
            maps,
            title="Load of every expert over time",
            rows="expert",
            columns="step",
            unit=draw.LOAD,
            top=self.top,
            loads=True,
            edges=[0, *self.steps],
        )
