"""From the composed config to objects: the one place that knows both. Everything built here takes
plain values.

The order is the order of mistakes: what can be checked without data comes first. The model itself
is built in `app.model.assemble`, which needs no Lightning.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from app.config.init import build_init
from app.model.assemble import build_model
from app.model.spec import ranged
from app.registry import UserError, check, make
from app.training.loggers import LoggerPart
from app.training.module import LanguageModel
from app.training.trainer import TrainerConfig, fixed_to_machine
from app.training.unfilled import unfilled

Config = Mapping[str, Any]
# of a value, by other people's
REFUSALS = (TypeError, ValueError, IndexError, RuntimeError, MisconfigurationException)
# whose classes a config may name by `_target_`
TARGETS = ("lightning", "torch", "torchmetrics")
# and where
FOREIGN_BASES: dict[str, type] = {
    "optimizer": torch.optim.Optimizer,
    "callbacks": lightning.Callback,
}


def build_trainer_config(config: Config) -> TrainerConfig:
    """How the run trains, checked."""
    return ranged(
        "trainer", lambda: TrainerConfig(**check(TrainerConfig, config["trainer"], "trainer"))
    )


def build_optimizer(config: Config) -> Callable[..., torch.optim.Optimizer]:
    """From parameters to an optimizer: ours by name, torch's by `_target_`.

    Raises:
        UserError: there is no such optimizer, or a value is refused.
    """
    entry = dict(config["optimizer"])
    # The training module scales the routers' learning rate.
    entry.pop("router_lr_factor", None)
    if entry.get("dtype") == "auto":
        precision = fixed_to_machine(config["trainer"])["precision"]
        entry["dtype"] = "bfloat16" if precision == "bf16-mixed" else "float32"
    if "_target_" in entry:
        make_optimizer = _foreign("optimizer", entry, torch.optim.Optimizer)
    else:
        make_optimizer = partial(make, "optimizer", entry, key="optimizer")
    make_optimizer([torch.zeros(1, device="cpu")])  # wrong values end here
    return make_optimizer


def build_module(
    config: Config, vocab_size: int, domains: list[str], micro_batch_size: int, whole: bool = True
) -> LanguageModel:
    """The LightningModule: model, optimizer and schedule;
    if not `whole`, its matrices are drawn once it is split.
    """
    make_optimizer = build_optimizer(config)
    build = partial(build_model, config, vocab_size)
    model, draws = (build(), {}) if whole else unfilled(build)
    build_init(config).freeze_parameters(model)
    router_lr_factor = build_router_lr_factor(config)
    for parameter in model.router_parameters():
        parameter.requires_grad_(router_lr_factor > 0)
    return LanguageModel(
        model,
        make_optimizer,
        make("schedule", config["schedule"], key="schedule"),
        clip_norm=config["trainer"]["gradient_clip_val"],
        micro_batch_size=micro_batch_size,
        domains=domains,
        seed=config["seed"],
        ep_size=config["trainer"]["ep_size"],
        draws=draws,
        skip_bad_steps=config["trainer"]["skip_bad_steps"],
        router_lr_factor=router_lr_factor,
    )


def build_router_lr_factor(config: Config) -> float:
    """Return the learning rate of the routers as a multiple of the optimizer's, checked."""
    factor = config["optimizer"].get("router_lr_factor", 1.0)
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not is_number or not 0 <= factor < float("inf"):
        raise UserError(
            f"optimizer.router_lr_factor={factor}: must be a number of at least 0; 0 freezes the "
            "routers"
        )
    return float(factor)


def build_callbacks(config: Config) -> list[lightning.Callback]:
    """Ours by name, other people's by `_target_`; an entry that is null is left out."""
    chosen = {key: entry for key, entry in config["callbacks"].items() if entry is not None}
    return [_callback(f"callbacks.{key}", entry) for key, entry in chosen.items()]


def build_loggers(config: Config) -> list[LoggerPart]:
    """The chosen loggers, none of them open."""
    return [make("logger", entry, key=f"logger.{key}") for key, entry in config["logger"].items()]


def _callback(key: str, entry: Config) -> lightning.Callback:
    if "_target_" not in entry:
        return make("callback", entry, key=key)
    return _foreign(key, entry, lightning.Callback)()


def _foreign(key: str, entry: Config, base: type) -> Callable[..., Any]:
    """Builds the class that `_target_` names, from the entry's other values as they stand: nothing
    in them is run.

    Raises:
        UserError: the class is not one of TARGETS' own below `base`, or refuses a value.
    """
    cls = foreign_class(key, str(entry.get("_target_")), base)
    values = {name: value for name, value in entry.items() if name != "_target_"}

    def build(*sizes: Any) -> Any:
        try:
            return cls(*sizes, **values)
        except REFUSALS as error:
            raise UserError(
                f"{_culprit(cls, key, sizes, values)}: {' '.join(str(error).split())}"
            ) from error

    return build


def _culprit(cls: type, key: str, sizes: tuple[object, ...], values: dict[str, object]) -> str:
    """The value that a class refuses: the one without which it can be built;
    the whole entry if it is none alone.
    """
    for name, value in values.items():
        try:
            cls(*sizes, **{other: values[other] for other in values if other != name})
        except REFUSALS:
            continue
        default = inspect.signature(cls).parameters.get(name)
        allowed = (
            f" (like {default.default})" if default and default.default is not default.empty else ""
        )
        return f"{key}.{name}={value}: refused by {cls.__name__}{allowed}"
    return key


def foreign_class(key: str, target: str, base: type) -> type:
    """Return the class that `_target_` names.

    Raises:
        UserError: It is not defined in one of the packages TARGETS, or is no subclass of `base`.
    """
    package = target.split(".")[0]
    if package not in TARGETS:
        raise UserError(
            f"{key}._target_={target}: must lie in {', '.join(TARGETS)}; register a class of your "
            "own"
        )
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        cls = None
    if not (
        isinstance(cls, type) and issubclass(cls, base) and cls.__module__.split(".")[0] == package
    ):
        raise UserError(f"{key}._target_={target}: is no {base.__name__} of {package}")
    return cls
