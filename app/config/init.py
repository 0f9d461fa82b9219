"""The config group `init`: where the weights of a new run come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.model.skills import SkillsInit
from app.model.spec import ranged
from app.model.transformer import Transformer
from app.model.upcycle import UpcycleInit
from app.registry import UserError, check, require, unknown

# Parts of a model that a run may freeze, by what the names of their weights contain.
PARTS = {
    "embedding": "embedding.",
    "attention": ".attention.",
    "experts": ".experts.",
    "norm": "norm.",
    "head": "head.",
}


@dataclass(frozen=True, kw_only=True)
class ScratchInit:
    """`init=scratch`: new weights."""

    def freeze_parameters(self, model: Transformer) -> None:
        """Freeze nothing."""


@dataclass(frozen=True, kw_only=True)
class RunInit:
    """`init=run`: the weights of another run.

    Attributes:
        checkpoint: Folder of the run, one of its checkpoints, or a file of weights alone.
        freeze: Parts that do not learn, of `PARTS`.

    Raises:
        ValueError: No checkpoint is named.
        UserError: A part does not exist.
    """

    checkpoint: str | None
    freeze: list[str] | None

    def __post_init__(self) -> None:
        has_checkpoint = self.checkpoint is not None
        require("checkpoint", self.checkpoint, has_checkpoint, "must be a run or a checkpoint")
        for part in self.freeze or ():
            if part not in PARTS:
                raise UserError(unknown(f"init.freeze={part}", part, PARTS))

    def freeze_parameters(self, model: Transformer) -> None:
        """Freeze the parts that do not learn."""
        for name, parameter in model.named_parameters():
            if any(PARTS[part] in name for part in self.freeze or ()):
                parameter.requires_grad_(False)


Init = ScratchInit | RunInit | UpcycleInit | SkillsInit


KINDS: dict[str, type] = {
    "scratch": ScratchInit,
    "run": RunInit,
    "upcycle": UpcycleInit,
    "skills": SkillsInit,
}


def build_init(config: Mapping[str, Any]) -> Init:
    """Return the source of a run's weights, checked; nothing is read.

    Raises:
        UserError: A key or a value does not exist or does not fit.
    """
    values = dict(config["init"])
    name = values.pop("name", None)
    if name not in KINDS:
        raise UserError(unknown(f"init.name={name}", str(name), KINDS))
    if isinstance(values.get("freeze"), str):
        values["freeze"] = [values["freeze"]]
    kind = KINDS[name]
    init: Init = ranged("init", lambda: kind(**check(kind, values, "init")))
    return init
