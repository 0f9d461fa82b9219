"""When the callbacks write, and where to:
scalars to every logger, pictures and text to TensorBoard.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from app.training.tags import by_layer


def logs(trainer: lightning.Trainer, step: int | None = None) -> bool:
    """Whether scalars are written after this optimizer step;
    by default the one that has just ended.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step if step is None else step) % every == 0


def step_of(trainer: lightning.Trainer) -> int:
    """The number, from 0, of the step that has just ended: under which Lightning writes its loss,
    and all else belongs.

    A run that goes on from the checkpoint after n steps drops what was logged under n and above.
    """
    return max(0, trainer.global_step - 1)


def write(trainer: lightning.Trainer, values: Mapping[str, Any]) -> None:
    """Writes scalars of the step that has just ended."""
    for logger in trainer.loggers:
        logger.log_metrics(
            {name: float(value) for name, value in values.items()}, step=step_of(trainer)
        )


def write_by_layer(
    trainer: lightning.Trainer, group: str, statistics: Mapping[str, Tensor]
) -> None:
    """Writes statistics (L,) as `GROUP/NAME`, the mean over layers,
    and `GROUP_by_layer/NAME/LAYER`; one host sync.
    """
    if not statistics:
        return
    table = torch.stack([value.double() for value in statistics.values()]).cpu()  # (N, L)
    values: dict[str, float] = {}
    for name, row in zip(statistics, table.tolist(), strict=True):
        values |= by_layer(group, name, row)
    write(trainer, values)


def event_writer(trainer: lightning.Trainer) -> SummaryWriter | None:
    """Where pictures and text go; None on all ranks but the first, and without TensorBoard."""
    found = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return found[0].experiment if found and trainer.is_global_zero else None


def labels_of(trainer: lightning.Trainer, kind: str) -> Sequence[str]:
    """Names of the `domains` or `topics` of the data; none where the data has none."""
    return getattr(getattr(trainer, "datamodule", None), kind, None) or []


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in the Text tab's Markdown; every cell shows its text as it is, on one line."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    marks = str.maketrans(
        {mark: f"&#{ord(mark)};" for mark in "|`*_<>&[]\\~"} | {"\n": " ⏎ ", "\r": " "}
    )
    return text.translate(marks)
