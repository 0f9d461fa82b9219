"""Which experts work together? After every `every`-th validation, on all of its tokens and ranks.

OLMoE (Muennighoff et al. 2024, arXiv 2409.02060, section 5.2).
"""

import lightning
import torch

from app.analysis.specialisation import co_activation
from app.registry import register, require
from app.training.metrics import Total
from app.training.module import Batch
from app.training.tags import Tag
from callbacks import draw
from callbacks.routing_callback import RoutingCallback
from callbacks.writing import event_writer, step_of
from routers.contract import Routing


@register("callback")
class CoActivation(RoutingCallback):
    """Draws which experts share their tokens, layer by layer.

    Args:
        every: validations between two pictures; at least 1.
        top: share of an expert's tokens at the end of the colour scale; above 0, at most 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "specialisation/co_activation",
            "share of the row expert's tokens that the other one has, layer by layer; the diagonal "
            "is left empty",
            "0..1",
            "image",
        ),
    )

    kept = ("looks",)

    def __init__(self, *, every: int, top: float) -> None:
        require("every", every, every >= 1, "must be at least 1")
        require("top", top, 0 < top <= 1, "must be in 0..1")
        self.every = every
        self.top = top
        self.looks = 0
        self.total = Total()

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        if self.looks % self.every == 0:
            self.total.add({"pairs": torch.stack([co_activation(routing) for routing in routings])})

    @torch.no_grad()
    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.looks += 1
        sums = self.total.take()
        writer = event_writer(trainer)
        if not sums or writer is None:
            return
        drawn = draw.panels(
            list(shares(sums["pairs"])),
            title=f"Experts that share their tokens, step {step_of(trainer)}",
            rows="expert",
            columns="other expert",
            unit="share of the expert's tokens",
            top=self.top,
        )
        draw.publish(writer, "specialisation/co_activation", drawn, step_of(trainer))


def shares(pairs: torch.Tensor) -> torch.Tensor:
    """Pairs (L, E, E) as a share of each row's load, NaN on the diagonal."""
    load = pairs.diagonal(dim1=-2, dim2=-1)[..., None]
    own = torch.eye(pairs.size(-1), dtype=torch.bool, device=pairs.device)
    return (pairs / load.clamp_min(1)).masked_fill(own, torch.nan)
