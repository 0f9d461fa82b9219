"""Weights & Biases, by Lightning's WandbLogger; `pip install wandb` and log in first."""

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from app.registry import UserError, register


@register("logger")
class Wandb:
    """Sends scalars to Weights & Biases, under the name of the run; a run that goes on is the same run there.

    Args:
        project: where the runs lie.
        offline: whether they stay in the folder `wandb` of the run until `wandb sync` sends them.

    Raises:
        UserError: its package is not installed.
    """

    def __init__(self, *, project: str, offline: bool) -> None:
        if find_spec("wandb") is None:
            raise UserError("logger=wandb: not installed; pip install wandb, or use logger=tensorboard")
        self.project, self.offline = project, offline

    def open(self, folder: Path, step: int) -> WandbLogger:
        return WandbLogger(
            name=folder.name,
            id=folder.name,
            project=self.project,
            offline=self.offline,
            save_dir=folder,
            resume="allow",
        )
