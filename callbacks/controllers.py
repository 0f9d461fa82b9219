"""What the controllers of the balance hold: the biases of loss_free, thresholds, lambda, ...; every
`every` steps.

Every float (L, ...) in the state of a balance term, after its last update; the same on all ranks.
"""

from collections.abc import Iterator

import lightning
import torch
from torch import Tensor

from app.registry import register, require
from app.training.module import LanguageModel
from app.training.tags import Tag
from callbacks.writing import event_writer, step_of, write, write_by_layer


@register("callback")
class Controllers(lightning.Callback):
    """Writes what the controllers of the balance hold.

    Args:
        every: steps between two points; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    tags = (
        Tag(
            "controllers/TERM_BUFFER_min",
            "smallest over the experts",
            "of the buffer",
            by_layer=True,
        ),
        Tag(
            "controllers/TERM_BUFFER_mean", "mean over the experts", "of the buffer", by_layer=True
        ),
        Tag(
            "controllers/TERM_BUFFER_max",
            "largest over the experts",
            "of the buffer",
            by_layer=True,
        ),
        Tag(
            "controllers/TERM_BUFFER",
            "a buffer of one value, or one a layer",
            "of the buffer",
            by_layer=True,
        ),
        Tag("controllers/TERM_BUFFER/LAYER", "all experts", "of the buffer", "histogram"),
    )

    def __init__(self, *, every: int) -> None:
        require("every", every, every >= 1, "must be at least 1")
        self.every = every

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        if trainer.global_step % self.every:
            return
        assert isinstance(pl_module, LanguageModel)
        writer = event_writer(trainer)
        for name, value in states(pl_module):
            if value.dim() == 0:
                write(trainer, {f"controllers/{name}": value})
                continue
            rows = value.flatten(1) if value.dim() > 1 else value[:, None]  # (L, ...)
            spread = {
                f"{name}_min": rows.amin(-1),
                f"{name}_mean": rows.mean(-1),
                f"{name}_max": rows.amax(-1),
            }
            write_by_layer(
                trainer, "controllers", spread if rows.size(1) > 1 else {name: rows[:, 0]}
            )
            if writer is not None and rows.size(1) > 1:
                for layer, row in enumerate(rows.cpu()):
                    writer.add_histogram(f"controllers/{name}/{layer}", row, step_of(trainer))


def states(module: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every float in the state of a balance term, empty ones left out."""
    for term, balance in module.model.balancer.terms.items():
        for buffer, value in balance.state_dict().items():
            if value.is_floating_point() and value.numel():
                yield f"{term}_{buffer.replace('.', '_')}", value
