"""From the composed config to objects: the one place that knows both. Everything built here takes plain values.

The order is the order of mistakes: what can be checked without data comes first. The model itself is built in
`app.assemble`, which needs no Lightning.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import lightning
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from app.assemble import build_model, ranged
from app.registry import UserError, check, make
from app.trainer import TrainerConfig
from app.training import LanguageModel

Config = Mapping[str, Any]
TARGETS = ("lightning", "torch", "torchmetrics")  # whose classes a config may name by `_target_`


def build_trainer_config(config: Config) -> TrainerConfig:
    """How the run trains, checked."""
    return ranged("trainer", lambda: TrainerConfig(**check(TrainerConfig, config["trainer"], "trainer")))


def build_module(config: Config, vocab_size: int, domains: list[str]) -> LanguageModel:
    """The LightningModule: model, optimizer and schedule."""
    optimizer = config["optimizer"]
    _allow_target("optimizer", optimizer)
    return LanguageModel(
        build_model(config, vocab_size),
        lambda groups: hydra.utils.instantiate(optimizer, groups, _convert_="all"),
        make("schedule", config["schedule"], key="schedule"),
        clip_norm=config["trainer"]["gradient_clip_val"],
        micro_batch_size=config["data"]["micro_batch_size"],
        domains=domains,
        seed=config["seed"],
        ep_size=config["trainer"]["ep_size"],
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
    _allow_target(key, entry)
    return hydra.utils.instantiate(dict(entry), _convert_="all")


def _allow_target(key: str, entry: Config) -> None:
    target = str(entry["_target_"])
    if target.split(".")[0] not in TARGETS:
        raise UserError(f"{key}._target_={target}: must lie in {', '.join(TARGETS)}; register a class of your own")
