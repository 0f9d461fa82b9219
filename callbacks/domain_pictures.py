"""Which expert serves which kind of text, as pictures; after a validation, on all of its tokens and
ranks.

The experts of a layer stand in the order of the domains that they served most at the first picture,
and stay there.
"""

import lightning
import torch
from torch import Tensor

from app.analysis.specialisation import load_by_label, mutual_information
from app.registry import register, require
from app.training.metrics import Total, uniform_multiple
from app.training.module import Batch
from app.training.tags import Tag
from callbacks import draw
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import event_writer, labels_of, step_of, write_by_layer
from routers.contract import Routing


@register("callback")
class DomainPictures(RoutingCallback):
    """Draws which domain and which topic goes to which expert, and writes how much one tells of the
    other.

    Args:
        every: validations between two pictures; at least 1.
        top: multiple of 1/E at the end of the colour scale; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "specialisation/experts_by_domain",
            "share of each expert in a domain's load, layer by layer",
            "multiples of 1/E",
            "image",
        ),
        Tag(
            "specialisation/experts_by_topic",
            "the same by topic, for tokens that have one",
            "multiples of 1/E",
            "image",
        ),
        Tag(
            "specialisation/domain_information",
            "mutual information of domain and expert; 0: every domain has the same experts",
            "nats",
            by_layer=True,
        ),
    )

    kept = ("looks", "order")

    def __init__(self, *, every: int, top: float) -> None:
        require("every", every, every >= 1, "must be at least 1")
        require("top", top, top > 0, "must be positive")
        self.every = every
        self.top = top
        self.looks = 0
        self.total = Total()
        self.order: Tensor | None = None  # (L, E), the expert at each place
        self.names: dict[str, list[str]] = {}

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.total = Total()
        self.names = {kind: list(labels_of(trainer, f"{kind}s")) for kind in ("domain", "topic")}

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        for kind, names in self.names.items():
            if names:
                each = [load_by_label(routing, batch[kind], len(names)) for routing in routings]
                self.total.add({kind: torch.stack(each)})

    @torch.no_grad()
    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.looks += 1
        if (self.looks - 1) % self.every:
            return
        sums = self.total.take()  # (L, labels, E) each
        if "domain" in sums:
            self.order = by_domain(sums["domain"]).cpu() if self.order is None else self.order
            write_by_layer(
                trainer,
                "specialisation",
                {"domain_information": mutual_information(sums["domain"])},
            )
        for kind, load in sums.items():
            self._publish(trainer, kind, load)

    def _publish(self, trainer: lightning.Trainer, kind: str, load: Tensor) -> None:
        writer = event_writer(trainer)
        step = step_of(trainer)
        seen = load.sum((0, 2)) > 0  # labels that occurred
        if writer is None or not seen.any():
            return
        names = [
            name for name, is_seen in zip(self.names[kind], seen.tolist(), strict=True) if is_seen
        ]
        shown = uniform_multiple(load[:, seen]).cpu()
        if self.order is not None:
            shown = shown.take_along_dim(self.order[:, None], -1)
        drawn = draw.panels(
            list(shown),
            title=f"Experts of every {kind} on held-out text, step {step}",
            rows=kind,
            columns="expert",
            unit="multiples of the even share",
            top=self.top,
            loads=True,
            column_names=None if self.order is None else self.order.tolist(),
            yticks=range(len(names)),
            yticklabels=[name[:16] for name in names],
        )
        draw.publish(writer, f"specialisation/experts_by_{kind}", drawn, step)


def by_domain(load: Tensor) -> Tensor:
    """The experts of each layer (L, E) by the domain of which they serve the largest share, the
    strongest first.

    Of load (L, domains, E).
    """
    share = uniform_multiple(load)
    strength, domain = share.max(1)  # (L, E)
    return (domain * (1 + strength.max()) - strength).argsort(dim=-1, stable=True)
