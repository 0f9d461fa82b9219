"""What the callbacks that look at the experts share: when they are called, when they log, and where they write.

They only watch. What they add up stays on the device until a step that logs.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from app.training import Batch, LanguageModel
from routers.contract import Routing


class Watcher(lightning.Callback):
    """Sees the routings of every forward pass of a LanguageModel, those of training apart from those of validation.

    A model without routed experts shows it nothing.
    """

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModel)
        self._call = partial(self._dispatch, pl_module)
        pl_module.watchers.append(self._call)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModel)
        pl_module.watchers.remove(self._call)

    def watch_training(self, routings: list[Routing], batch: Batch) -> None:
        """Called without gradient after every forward pass of training: once per micro-batch of this rank."""

    def watch_validation(self, routings: list[Routing], batch: Batch) -> None:
        """Called without gradient after every forward pass of validation."""

    def _dispatch(self, module: LanguageModel, routings: list[Routing], batch: Batch) -> None:
        if routings and module.training:
            self.watch_training(routings, batch)
        elif routings:
            self.watch_validation(routings, batch)


def logs(trainer: lightning.Trainer, step: int | None = None) -> bool:
    """Whether scalars are written after this optimizer step; by default the one that has just ended."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step if step is None else step) % every == 0


def write(trainer: lightning.Trainer, values: Mapping[str, Any]) -> None:
    """Writes scalars at the step under which Lightning writes the loss of the step that has just ended."""
    for logger in trainer.loggers:
        logger.log_metrics({name: float(value) for name, value in values.items()}, step=max(0, trainer.global_step - 1))


def write_by_layer(trainer: lightning.Trainer, group: str, statistics: Mapping[str, Tensor]) -> None:
    """Writes statistics (L,) as `GROUP/NAME`, the mean over layers, and `GROUP_by_layer/NAME/LAYER`; one host sync."""
    if not statistics:
        return
    table = torch.stack([value.double() for value in statistics.values()]).cpu()  # (N, L)
    values = {}
    for name, row in zip(statistics, table.tolist(), strict=True):
        values[f"{group}/{name}"] = sum(row) / len(row)
        values |= {f"{group}_by_layer/{name}/{layer}": value for layer, value in enumerate(row)}
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
    marks = str.maketrans({mark: f"&#{ord(mark)};" for mark in "|`*_<>&[]\\~"} | {"\n": " ⏎ ", "\r": " "})
    return text.translate(marks)
