"""From the composed config to objects: the one place that knows both. Everything built here takes plain values.

The order is the order of mistakes: what can be checked without data comes first. The model itself is built in
`app.model.assemble`, which needs no Lightning.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from app.model.assemble import build_model, ranged
from app.registry import UserError, check, make
from app.training.module import LanguageModel
from app.training.trainer import TrainerConfig

Config = Mapping[str, Any]
TARGETS = ("lightning", "torch", "torchmetrics")  # whose classes a config may name by `_target_`


def build_trainer_config(config: Config) -> TrainerConfig:
    """How the run trains, checked."""
    return ranged("trainer", lambda: TrainerConfig(**check(TrainerConfig, config["trainer"], "trainer")))


def build_module(config: Config, vocab_size: int, domains: list[str]) -> LanguageModel:
    """The LightningModule: model, optimizer and schedule."""
    make_optimizer = _foreign("optimizer", config["optimizer"], torch.optim.Optimizer)
    make_optimizer([torch.zeros(1, device="cpu")])  # wrong values end here
    return LanguageModel(
        build_model(config, vocab_size),
        make_optimizer,
        make("schedule", config["schedule"], key="schedule"),
        clip_norm=config["trainer"]["gradient_clip_val"],
        micro_batch_size=config["data"]["micro_batch_size"],
        domains=domains,
        seed=config["seed"],
        ep_size=config["trainer"]["ep_size"],
        skip_bad_steps=config["trainer"]["skip_bad_steps"],
    )


def build_callbacks(config: Config) -> list[lightning.Callback]:
    """Ours by name, other people's by `_target_`; an entry that is null is left out."""
    chosen = {key: entry for key, entry in config["callbacks"].items() if entry is not None}
    return [_callback(f"callbacks.{key}", entry) for key, entry in chosen.items()]


def build_logger(folder: Path) -> Logger:
    """Event files in the folder `tb` of the run."""
    return TensorBoardLogger(folder, name="", version="tb", default_hp_metric=False)


def _callback(key: str, entry: Config) -> lightning.Callback:
    if "_target_" not in entry:
        return make("callback", entry, key=key)
    return _foreign(key, entry, lightning.Callback)()


def _foreign(key: str, entry: Config, base: type) -> Callable[..., Any]:
    """Builds the class that `_target_` names, from the entry's other values as they stand: nothing in them is run.

    Raises:
        UserError: the class is not one of TARGETS' own below `base`, or refuses a value.
    """
    cls = _foreign_class(key, str(entry.get("_target_")), base)
    values = {name: value for name, value in entry.items() if name != "_target_"}

    def build(*sizes: Any) -> Any:
        try:
            return cls(*sizes, **values)
        except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
            raise UserError(f"{key}: {' '.join(str(error).split())}") from error

    return build


def _foreign_class(key: str, target: str, base: type) -> type:
    package = target.split(".")[0]
    if package not in TARGETS:
        raise UserError(f"{key}._target_={target}: must lie in {', '.join(TARGETS)}; register a class of your own")
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, base) and cls.__module__.split(".")[0] == package):
        raise UserError(f"{key}._target_={target}: is no {base.__name__} of {package}")
    return cls
