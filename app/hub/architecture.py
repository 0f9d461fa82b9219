"""What an architecture of `transformers` is to us:
the facts that it has fixed, and its names for the others.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from app.hub.facts import Facts
from app.model.moe import MoE
from app.registry import UserError

Views = dict[str, Tensor]
# our facts, and what nearly all architectures call them
COMMON = {
    "model.dim": "hidden_size",
    "model.num_layers": "num_hidden_layers",
    "model.num_heads": "num_attention_heads",
    "model.num_kv_heads": "num_key_value_heads",
    "model.head_dim": "head_dim",
    "model.norm_eps": "rms_norm_eps",
    "model.tie_embeddings": "tie_word_embeddings",
    "model.vocab_size": "vocab_size",
    "data.seq_len": "max_position_embeddings",
}
# follow from other facts, or have no effect where no other fact says so
IMPLIED = {
    "model.rope_theta",
    "model.attention_scale",
    "model.hidden_dim",
    "shared_dim",
    "num_shared",
}
# what a config.json must hold for our keys; all others are counts and widths
BOOLEANS = {"model.tie_embeddings", "model.qkv_bias", "router.weigh.normalize"}
NUMBERS = {"model.norm_eps", "model.rope_theta", "model.attention_scale", "router.weigh.scale"}
LARGEST = {"model.num_layers": 10_000}


@dataclass(frozen=True)
class Architecture:
    """One of them.

    Args:
        name: its `model_type`.
        cls: its class for language models.
        needs: facts that are fixed.
        keys: facts that are values of its config, beside the common ones; also of some that `needs`
            has.
        dense: how its config says which layers have no experts: their `list`, how many are `first`,
            or None: not.
        constants: values of its config under which it computes what ours does.
        experts: the views of a layer with experts, by the names behind that of the layer.
    """

    name: str
    cls: str
    needs: Mapping[str, object]
    keys: Mapping[str, str]
    dense: tuple[str, str] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    experts: Callable[[MoE, Tensor | None], Views] | None = None

    def misfits(self, facts: Facts) -> dict[str, str]:
        """The facts that it cannot have, and what it has instead."""
        free = {*COMMON, *self.keys, *IMPLIED}
        uncounted = "num_shared" in self.keys and "num_shared" not in facts
        found = {"shared_dim": "multiples of expert_dim"} if uncounted else {}
        for name in facts.keys() | self.needs.keys():
            if name == "dense_layers":
                if not self._may_be_dense(facts):
                    found[name] = "other layers"
            elif name in self.needs and name not in self.keys:
                if facts.get(name) != self.needs[name]:
                    found[name] = str(self.needs[name])
            elif name not in free:
                found[name] = "nothing like it"
        return found

    def _may_be_dense(self, facts: Facts) -> bool:
        layers = facts["dense_layers"]
        if self.experts is None:
            return True
        if self.dense is None:
            return not layers
        return self.dense[1] == "list" or layers == list(range(len(layers)))

    def config(self, facts: Facts) -> dict[str, Any]:
        """Its config for a model with these facts."""
        names = {**COMMON, **self.keys}
        values = {theirs: facts[ours] for ours, theirs in names.items() if theirs and ours in facts}
        rope = {"rope_type": "default", "rope_theta": facts["model.rope_theta"]}
        constants = {
            key: value for key, value in self.constants.items() if key != "rope_parameters"
        }
        values |= {**constants, "rope_parameters": rope | self.constants.get("rope_parameters", {})}
        if self.dense is not None:
            key, how = self.dense
            values[key] = facts["dense_layers"] if how == "list" else len(facts["dense_layers"])
        about = {"model_type": self.name, "architectures": [self.cls], "dtype": "float32"}
        return about | {"rope_theta": facts["model.rope_theta"]} | values

    def facts(self, config: Mapping[str, Any]) -> Facts:
        """The facts of a model with its config.

        Raises:
            UserError: a value of the config makes it compute something that ours does not.
        """
        for key, value in self.constants.items():
            if key != "rope_parameters" and config.get(key, value) not in (value, None):
                raise UserError(
                    f"{key}={config[key]}: cannot be imported; of {self.name} only {key}={value} "
                    "can be"
                )
        names = {**COMMON, **self.keys}
        absent = sorted({*names.values()} - {"", "head_dim"} - config.keys())
        if absent:
            raise UserError(f"config.json: says nothing of {absent[0]}, which {self.name} has")
        for ours, theirs in names.items():
            if theirs and not (theirs == "head_dim" and config.get(theirs) is None):
                _require_kind(ours, theirs, config[theirs])
        free = {ours: config.get(theirs) if theirs else True for ours, theirs in names.items()}
        facts = dict(self.needs) | free
        if facts.get("model.head_dim") is None:
            facts["model.head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        layers = []
        if self.dense is not None:
            layers = self._dense_layers(config)
        facts["dense_layers"] = (
            list(range(config["num_hidden_layers"])) if self.experts is None else layers
        )
        return facts | {"model.rope_theta": self._rope(config)}

    def _dense_layers(self, config: Mapping[str, Any]) -> list[int]:
        """Numbers of the layers without experts, as its config gives them."""
        assert self.dense is not None
        key, how = self.dense
        most: int = config["num_hidden_layers"]
        value: Any = config.get(key)
        if how == "list":
            value = value or []
            if not isinstance(value, list) or not all(
                _is_whole(number) and 0 <= number < most for number in value
            ):
                raise UserError(
                    f"config.json: {key}={value} must be a list of numbers in 0..{most - 1}"
                )
            return list(value)
        value = value or 0
        if not _is_whole(value) or not 0 <= value <= most:
            raise UserError(f"config.json: {key}={value} must be a number in 0..{most}")
        return list(range(value))

    def _rope(self, config: Mapping[str, Any]) -> float:
        given = config.get("rope_parameters") or {}
        if not isinstance(given, Mapping):
            raise UserError(f"config.json: rope_parameters={given} must be an object")
        rope = dict(given)
        theta = rope.pop("rope_theta", config.get("rope_theta", 10_000.0))
        allowed = {"rope_type": "default"} | self.constants.get("rope_parameters", {})
        for key, value in rope.items():
            if value != allowed.get(key, 1.0):
                raise UserError(
                    f"rope_parameters.{key}={value}: cannot be imported; ours rotates whole heads "
                    "unscaled"
                )
        _require_kind("model.rope_theta", "rope_theta", theta)
        return float(theta)


def _require_kind(ours: str, theirs: str, value: Any) -> None:
    """Checks that a value of a config.json is of the kind that our key takes.

    Raises:
        UserError: It is of another kind, or out of range.
    """
    if ours in BOOLEANS:
        allowed = isinstance(value, bool)
        text = "true or false"
    elif ours in NUMBERS:
        allowed = (
            isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        )
        text = "a positive number"
    else:
        most = LARGEST.get(ours, 2**31)
        allowed = _is_whole(value) and 0 <= value <= most
        text = f"a whole number in 0..{most}"
    if not allowed:
        raise UserError(f"config.json: {theirs}={value} must be {text}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
