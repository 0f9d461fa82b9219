"""From the composed config to the model;
without Lightning, which takes longer to import than a model to build.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from app.model.config import ModelConfig
from app.model.ensemble import Ensemble
from app.model.moe import MoE, Unrouted
from app.model.transformer import Transformer
from app.registry import UserError, check, make, unknown
from experts.contract import Experts
from experts.mixture import Mixture
from routers.balancer import Balancer
from routers.contract import Drop, Select, Sizes
from routers.router import Router

log = logging.getLogger(__name__)
Config = Mapping[str, Any]
KINDS = ("score", "weigh", "select", "drop")  # of a router's parts


def build_model(config: Config, vocab_size: int) -> Transformer:
    """The transformer with its routers, experts and balance terms.

    Raises:
        UserError: a part or a value does not exist or does not fit.
    """
    model = model_config(config)
    vocab_size = _vocabulary(model, vocab_size)
    layouts = [
        _layout(config, model) if model.is_moe(i) else _dense(config, model)
        for i in range(model.num_layers)
    ]
    routed = [layout for layout in layouts if layout.num_experts]
    sizes = sizes_of(routed, model.dim, vocab_size)
    check_layers(config, len(routed))
    ffns: list[nn.Module] = [
        _moe(config, sizes._replace(layer=routed.index(layout)), layout)
        if layout.num_experts
        else Unrouted(layout)
        for layout in layouts
    ]
    balancer = build_balancer(config, sizes)
    kind = (
        Ensemble
        if any(isinstance(layout, Mixture) and layout.on_model for layout in layouts)
        else Transformer
    )
    return ranged("", lambda: kind(model, ffns, balancer, vocab_size))


def _moe(config: Config, sizes: Sizes, layout: Experts) -> MoE:
    router = build_router(config, sizes)
    if router.weigh.on_input and isinstance(layout, Mixture):
        raise UserError(
            f"experts.name={config['experts']['name']}: mixes its experts in one, and this "
            "router weighs what each of "
            "them sees; set router/weigh=identity, or another that weighs what they return"
        )
    return MoE(router, layout)


def sizes_of(routed: list[Experts], dim: int, vocab_size: int) -> Sizes:
    """What the parts of the routers are built from: the layouts of all MoE layers are alike."""
    if not routed:
        return Sizes(dim, 0, 0, 0, vocab_size)
    first = routed[0]
    return Sizes(
        dim,
        first.num_experts,
        first.top_k,
        len(routed),
        vocab_size,
        free=first.free,
        null=first.null,
    )


def model_config(config: Config) -> ModelConfig:
    """The sizes of the transformer, checked."""
    return ranged("model", lambda: ModelConfig(**check(ModelConfig, config["model"], "model")))


def build_router(config: Config, sizes: Sizes) -> Router:
    """The router of one MoE layer: the parts of all layers,
    but those that `router.layers` gives to this one.
    """
    chosen = {kind: (f"router.{kind}", config["router"].get(kind)) for kind in KINDS}
    for name, entry in (config["router"].get("layers") or {}).items():
        if sizes.layer in _existing(entry["at"], sizes.num_layers):
            chosen |= {
                kind: (f"router.layers.{name}.{kind}", part)
                for kind, part in entry.items()
                if kind in KINDS
            }
    parts = {kind: _part(kind, key, entry, sizes) for kind, (key, entry) in chosen.items()}
    router = ranged("router", lambda: Router(**parts, sizes=sizes))
    for kind in ("select", "drop"):
        _refuse_look_ahead(parts[kind], *chosen[kind], config["allow_non_causal"])
    return router


def check_layers(config: Config, num_layers: int) -> None:
    """Whether `router` has the keys that it may have, and `router.layers` names parts and layers
    that there are.

    Raises:
        UserError: it does not.
    """
    keys = (*KINDS, "layers")
    for key in config["router"]:
        if key not in keys:
            raise UserError(unknown(f"router.{key}", str(key), keys))
    for name, entry in (config["router"].get("layers") or {}).items():
        key = f"router.layers.{name}"
        if (
            not isinstance(entry, Mapping)
            or not isinstance(at := entry.get("at"), Sequence)
            or isinstance(at, str)
        ):
            raise UserError(
                f"{key}: must have the list `at`, MoE layers from 0 (-1: the last), "
                "and parts for them"
            )
        if num_layers and not _existing(at, num_layers):
            raise UserError(
                f"{key}.at={list(at)}: names none of the {num_layers} MoE layers, "
                "which count from 0"
            )
        for kind in entry:
            if kind not in (*KINDS, "at"):
                raise UserError(unknown(f"{key}.{kind}", str(kind), (*KINDS, "at")))


def _existing(at: Sequence[Any], num_layers: int) -> list[int]:
    """The layers, counted from 0 or from -1 downwards, that there are."""
    return [
        layer % num_layers
        for layer in at
        if isinstance(layer, int) and -num_layers <= layer < num_layers
    ]


def build_balancer(config: Config, sizes: Sizes) -> Balancer:
    """All chosen balance terms; none for a model without experts."""
    terms = config["balance"] if sizes.num_experts else {}
    for key, term in terms.items():
        if not isinstance(term, Mapping):
            raise UserError(
                f"balance.{key}={term}: a balance term nests under its own name; write NAME: "
                f"{{name: NAME, ...}} in "
                "conf/balance/NAME.yaml"
            )
        if "name" not in term:
            raise UserError(
                f"balance.{key}: has values but was not chosen; add it with balance=[...,{key}]"
            )
    return ranged(
        "",
        lambda: Balancer(
            {k: make("balance", t, sizes, key=f"balance.{k}") for k, t in terms.items()}
        ),
    )


def _layout(config: Config, model: ModelConfig) -> Any:
    return _activated(
        config, {k: v for k, v in config["experts"].items() if k != "activation"}, model, "experts"
    )


def _dense(config: Config, model: ModelConfig) -> Any:
    return _activated(config, {"name": "dense", "hidden_dim": model.hidden_dim}, model, "model")


def _activated(config: Config, entry: Config, model: ModelConfig, key: str) -> Any:
    """A layout whose networks have the activation of the config."""
    layout = make("experts", entry, model.dim, key=key)
    chosen = config["experts"].get("activation", {"name": "swiglu"})
    if not isinstance(chosen, Mapping):
        raise UserError(
            f"experts.activation={chosen}: is chosen with a slash; write experts/activation=NAME"
        )
    layout.activate(make("activation", chosen, key="experts.activation"))
    return layout


def _vocabulary(model: ModelConfig, vocab_size: int) -> int:
    """The model's own number of tokens where the config states one, else the tokenizer's."""
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size}: must be at least {vocab_size}, "
            "the tokenizer's; or null"
        )
    return model.vocab_size or vocab_size


def _part(kind: str, key: str, entry: Any, sizes: Sizes) -> Any:
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{key}={entry}: a part is chosen with a slash; write {key.replace('.', '/')}=NAME"
        )
    if "k" in entry and entry["k"] is None:  # follows the layout
        entry = {**entry, "k": sizes.top_k}
    return make(kind, entry, sizes, key=key)


def _refuse_look_ahead(part: Select | Drop, key: str, entry: Config, allowed: bool) -> None:
    name = f"{key}.name={entry['name']}"
    if part.causal == "never" and not allowed:
        raise UserError(
            f"{name}: a token's choice depends on later tokens, so a language model would see "
            "its targets; set "
            "allow_non_causal=true to train it all the same"
        )
    if part.causal == "eval":
        _warn_of_look_ahead(name)


@cache
def _warn_of_look_ahead(part: str) -> None:
    """Once for all layers."""
    log.warning(f"{part}: looks at later tokens in training (not in evaluation)")


def ranged(key: str, build: Any) -> Any:
    """What `build` returns; a range check that fails there names its place in the config."""
    try:
        return build()
    except ValueError as error:
        raise UserError(f"{key}.{error}" if key else str(error)) from error
