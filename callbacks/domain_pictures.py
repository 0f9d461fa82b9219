"""Which expert serves which kind of text, as pictures; after a validation, on all of its tokens and ranks.

    specialisation/experts_by_domain  image: domain x expert for each layer
    specialisation/experts_by_topic   image: topic x expert, the layers side by side; for tokens that have a topic
    specialisation/domain_information scalar, and specialisation_by_layer/domain_information/LAYER: mutual information
                                      of domain and expert in nats; 0 where every domain has the same experts

A cell is the share of the expert in the load of that text, as a multiple of 1/E. All are global.
"""

import lightning
import torch
from torch import Tensor

from app.metrics import Total, uniform_multiple
from app.registry import register, require
from app.specialisation import load_by_label, mutual_information
from app.training import Batch
from callbacks import draw
from callbacks.watcher import Watcher, event_writer, labels_of, write_by_layer
from routers.contract import Routing


@register("callback")
class DomainPictures(Watcher):
    """Raises ValueError if `every` (validations) or `top` (end of the colour scale) is not positive."""

    def __init__(self, *, every: int, top: float) -> None:
        require("every", every, every >= 1, "must be at least 1")
        require("top", top, top > 0, "must be positive")
        self.every, self.top, self.looks = every, top, 0
        self.total = Total()
        self.names: dict[str, list[str]] = {}

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.total = Total()
        self.names = {kind: list(labels_of(trainer, f"{kind}s")) for kind in ("domain", "topic")}

    def watch_validation(self, routings: list[Routing], batch: Batch) -> None:
        for kind, names in self.names.items():
            if names:
                each = [load_by_label(routing, batch[kind], len(names)) for routing in routings]
                self.total.add({kind: torch.stack(each)})

    @torch.no_grad()
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.looks += 1
        if (self.looks - 1) % self.every:
            return
        sums = self.total.take()  # (L, labels, E) each
        if "domain" in sums:
            write_by_layer(trainer, "specialisation", {"domain_information": mutual_information(sums["domain"])})
        for kind, load in sums.items():
            self._publish(trainer, kind, load)

    def _publish(self, trainer: lightning.Trainer, kind: str, load: Tensor) -> None:
        writer, step = event_writer(trainer), trainer.global_step
        seen = load.sum((0, 2)) > 0  # labels that occurred
        if writer is None or not seen.any():
            return
        names = [name for name, is_seen in zip(self.names[kind], seen.tolist(), strict=True) if is_seen]
        drawn = draw.panels(
            list(uniform_multiple(load[:, seen])),
            title=f"Experts of every {kind} on held-out text, step {step}",
            rows=kind,
            columns="expert",
            unit=f"share in the {kind}'s load, multiples of 1/E",
            top=self.top,
            yticks=range(len(names)),
            yticklabels=[name[:16] for name in names],
        )
        draw.publish(writer, f"specialisation/experts_by_{kind}", drawn, step)
