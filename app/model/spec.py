"""What a model is made of: named parts with the values of their options, as plain typed values.

`model_spec` reads it out of a composed config; `app.model.assemble` builds the model from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from app.model.config import ModelConfig
from app.registry import UserError, check, make, unknown

T = TypeVar("T")
Config = Mapping[str, Any]
# The parts of a router.
KINDS = ("score", "weigh", "select", "drop")


@dataclass(frozen=True)
class PartSpec:
    """A registered part, and the values of its options.

    Attributes:
        kind: Its kind, such as `score`.
        key: Where it is in the config, for errors.
        name: Its registered name.
        values: Its options; they are checked when it is built.
    """

    kind: str
    key: str
    name: str
    values: Mapping[str, object]

    def build(self, *sizes: object) -> Any:
        """Return the part, built for these sizes.

        Raises:
            UserError: The name or a value does not exist or does not fit.
        """
        return make(self.kind, {"name": self.name, **self.values}, *sizes, key=self.key)

    def with_k(self, top_k: int) -> "PartSpec":
        """Return the part with `k` experts per token of the layout where it leaves them open."""
        if "k" in self.values and self.values["k"] is None:
            return replace(self, values={**self.values, "k": top_k})
        return self


@dataclass(frozen=True)
class LayerSpec:
    """`router.layers.NAME`: parts for some of the MoE layers.

    Attributes:
        key: Where it is in the config, for errors.
        at: Numbers of MoE layers, from 0, or from -1 downwards.
        parts: Parts of a router, by kind.
    """

    key: str
    at: tuple[object, ...]
    parts: Mapping[str, PartSpec]

    def layers(self, num_layers: int) -> list[int]:
        """Return the layers that exist, counted from 0."""
        layers = []
        for layer in self.at:
            if isinstance(layer, int) and -num_layers <= layer < num_layers:
                layers.append(layer % num_layers)
        return layers


@dataclass(frozen=True)
class ModelSpec:
    """All that determines the architecture of a model.

    Attributes:
        model: Sizes of the transformer.
        router: Parts of the routers, by kind.
        layers: Exceptions for some layers.
        experts: Layout of the experts.
        activation: Activation of the experts and of dense layers.
        balance: Balance terms, by name.
        allow_non_causal: Whether a selection may look at later tokens.
    """

    model: ModelConfig
    router: Mapping[str, PartSpec]
    layers: Sequence[LayerSpec]
    experts: PartSpec
    activation: PartSpec
    balance: Mapping[str, PartSpec]
    allow_non_causal: bool


def model_spec(config: Config) -> ModelSpec:
    """Return the specification of the model in a composed config.

    Raises:
        UserError: A key does not exist, or a value is no part.
    """
    router = config["router"]
    keys = (*KINDS, "layers")
    for key in router:
        if key not in keys:
            raise UserError(unknown(f"router.{key}", str(key), keys))
    balance = config["balance"] or {}
    experts = {key: value for key, value in config["experts"].items() if key != "activation"}
    activation = config["experts"].get("activation", {"name": "swiglu"})
    return ModelSpec(
        model=model_config(config),
        router={kind: _part(kind, f"router.{kind}", router.get(kind)) for kind in KINDS},
        layers=[_layer(name, entry) for name, entry in (router.get("layers") or {}).items()],
        experts=_part("experts", "experts", experts),
        activation=_part("activation", "experts.activation", activation),
        balance={name: _balance_term(name, term) for name, term in balance.items()},
        allow_non_causal=config["allow_non_causal"],
    )


def model_config(config: Config) -> ModelConfig:
    """Return the sizes of the transformer, checked."""
    values = check(ModelConfig, config["model"], "model")
    return ranged("model", lambda: ModelConfig(**values))


def ranged(key: str, build: Callable[[], T]) -> T:
    """Return what `build` returns; a range check that fails there names its place in the config.

    Raises:
        UserError: A value is out of its range.
    """
    try:
        return build()
    except ValueError as error:
        raise UserError(f"{key}.{error}" if key else str(error)) from error


def _part(kind: str, key: str, entry: object) -> PartSpec:
    if not isinstance(entry, Mapping):
        path = key.replace(".", "/")
        raise UserError(f"{key}={entry}: a part is chosen with a slash; write {path}=NAME")
    values = {name: value for name, value in entry.items() if name != "name"}
    return PartSpec(kind, key, entry.get("name", ""), values)


def _layer(name: str, entry: object) -> LayerSpec:
    key = f"router.layers.{name}"
    at = entry.get("at") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(at, Sequence) or isinstance(at, str):
        raise UserError(
            f"{key}: must have the list `at`, MoE layers from 0 (-1: the last), and parts for them"
        )
    parts = {}
    for kind, part in entry.items():
        if kind == "at":
            continue
        if kind not in KINDS:
            raise UserError(unknown(f"{key}.{kind}", str(kind), (*KINDS, "at")))
        parts[kind] = _part(kind, f"{key}.{kind}", part)
    return LayerSpec(key, tuple(at), parts)


def _balance_term(name: str, entry: object) -> PartSpec:
    key = f"balance.{name}"
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{key}={entry}: a balance term nests under its own name; write NAME: {{name: NAME, "
            "...} in conf/balance/NAME.yaml"
        )
    if "name" not in entry:
        raise UserError(f"{key}: has values but was not chosen; add it with balance=[...,{name}]")
    return _part("balance", key, entry)
