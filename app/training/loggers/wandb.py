"""Weights & Biases, by Lightning's WandbLogger; `pip install wandb` and log in first."""

import secrets
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from app.registry import UserError, register
from app.training.files import write_whole
from app.training.messages import is_first_rank

# file in the folder of a run
ID = "wandb_id"


@register("logger")
class Wandb:
    """Sends scalars to Weights & Biases, under the name of the run; a run that goes on is the same
    run there.

    Args:
        project: where the runs lie.
        entity: user or team that the project belongs to; null: that of the login.
        group: name of runs that belong together; null: none.
        tags: of the run.
        offline: whether they stay in the folder `wandb` of the run until `wandb sync` sends them.

    Raises:
        UserError: its package is not installed.
    """

    def __init__(
        self, *, project: str, entity: str | None, group: str | None, tags: list[str], offline: bool
    ) -> None:
        if find_spec("wandb") is None:
            raise UserError(
                "logger=wandb: not installed; pip install wandb, or use logger=tensorboard"
            )
        self.project = project
        self.entity = entity
        self.group = group
        self.tags = tags
        self.offline = offline

    def open(self, folder: Path, step: int) -> WandbLogger:
        return WandbLogger(
            name=folder.name,
            id=run_id(folder),
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            offline=self.offline,
            save_dir=folder,
            resume="allow",
        )


def run_id(folder: Path) -> str:
    """Return the Weights & Biases id of a run: random for a new run, and the saved id when the run
    resumes.

    Weights & Biases never frees an id, not even that of a deleted run, so the folder name cannot
    serve as the id.
    """
    path = folder / ID
    if not is_first_rank():
        return folder.name  # this rank sends nothing
    if not path.exists():
        write_whole(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")
