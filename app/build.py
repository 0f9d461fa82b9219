"""From the composed config to objects: the one place that knows both. Everything built here takes plain values.

The order is the order of mistakes: what can be checked without data comes first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import lightning
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from app.moe import MoE, Unrouted
from app.registry import UserError, check, make
from app.trainer import TrainerConfig
from app.training import LanguageModel
from app.transformer import ModelConfig, Transformer
from routers.balancer import Balancer
from routers.contract import Sizes
from routers.router import Router

Config = Mapping[str, Any]
TARGETS = ("lightning", "torch", "torchmetrics")  # whose classes a config may name by `_target_`


def build_model(config: Config, vocab_size: int) -> Transformer:
    """The transformer with its routers, experts and balance terms.

    Raises:
        UserError: a part or a value does not exist or does not fit.
    """
    model = model_config(config)
    layouts = [_layout(config, model) if model.is_moe(i) else _dense(model) for i in range(model.num_layers)]
    routed = [layout for layout in layouts if layout.num_experts]
    num_experts, top_k = (routed[0].num_experts, routed[0].top_k) if routed else (0, 0)
    sizes = Sizes(model.dim, num_experts, top_k, len(routed), vocab_size)
    ffns = [
        MoE(build_router(config, sizes._replace(layer=routed.index(layout))), layout)
        if layout.num_experts
        else Unrouted(layout)
        for layout in layouts
    ]
    return Transformer(model, ffns, build_balancer(config, sizes), vocab_size)


def build_trainer_config(config: Config) -> TrainerConfig:
    """How the run trains, checked."""
    return _ranged("trainer", lambda: TrainerConfig(**check(TrainerConfig, config["trainer"], "trainer")))


def model_config(config: Config) -> ModelConfig:
    """The sizes of the transformer, checked."""
    return _ranged("model", lambda: ModelConfig(**check(ModelConfig, config["model"], "model")))


def build_router(config: Config, sizes: Sizes) -> Router:
    """The router of one MoE layer."""
    parts = {kind: _part(kind, config["router"][kind], sizes) for kind in ("score", "weigh", "select", "drop")}
    router = _ranged("router", lambda: Router(**parts, sizes=sizes))
    _refuse_look_ahead(router, config)
    return router


def build_balancer(config: Config, sizes: Sizes) -> Balancer:
    """All chosen balance terms; none for a model without experts."""
    terms = config["balance"] if sizes.num_experts else {}
    for key, term in terms.items():
        if "name" not in term:
            raise UserError(f"balance.{key}: has values but was not chosen; add it with balance=[...,{key}]")
    return _ranged("", lambda: Balancer({k: make("balance", t, sizes, key=f"balance.{k}") for k, t in terms.items()}))


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


def _layout(config: Config, model: ModelConfig) -> Any:
    return make("experts", config["experts"], model.dim, key="experts")


def _dense(model: ModelConfig) -> Any:
    return make("experts", {"name": "dense", "hidden_dim": model.hidden_dim}, model.dim, key="model")


def _part(kind: str, entry: Config, sizes: Sizes) -> Any:
    if "k" in entry and entry["k"] is None:  # follows the layout
        entry = {**entry, "k": sizes.top_k}
    return make(kind, entry, sizes, key=f"router.{kind}")


def _refuse_look_ahead(router: Router, config: Config) -> None:
    causal, name = router.select.causal, config["router"]["select"]["name"]
    if causal == "never" and not config["allow_non_causal"]:
        raise UserError(
            f"router.select.name={name}: a token's choice depends on later tokens, so a language model would see its "
            "targets; set allow_non_causal=true to train it all the same"
        )


def _ranged(key: str, build: Any) -> Any:
    try:
        return build()
    except ValueError as error:
        raise UserError(f"{key}.{error}" if key else str(error)) from error
