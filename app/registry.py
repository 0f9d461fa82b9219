"""Parts by name: every score, selection, layout, ... registers itself and is found by the folder it
lies in.

A part is one class in one file. The file's name is the part's name and the name of its YAML; the
class signature is the schema of that YAML: sizes are positional, knobs are keyword-only and without
defaults. Nothing is listed by hand: a kind's package is imported whole when one of its names is
first looked up, and so is every installed package that declares an entry point in the group
`router_zoo.plugins`.
"""

import difflib
import errno
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, make_dataclass
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

PLUGINS = "router_zoo.plugins"
PACKAGES = {
    "score": "routers.score",
    "select": "routers.select",
    "weigh": "routers.weigh",
    "drop": "routers.drop",
    "balance": "routers.balance",
    "experts": "experts",
    "activation": "experts.activation",
    "data": "app.data.sources",
    "tokenizer": "app.data.tokenizers",
    "optimizer": "app.training.optimizers",
    "schedule": "app.training.schedules",
    "callback": "callbacks",
    "logger": "app.training.loggers",
}
# of an OSError: the disk is full, or a folder or file cannot be written; the machine's fault, not a
# mistake of ours
NO_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
}
T = TypeVar("T", bound=type)
_parts: dict[str, dict[str, type]] = {kind: {} for kind in PACKAGES}


class UserError(Exception):
    """The user's mistake, in one line that names key, value and way out;
    `train.py` prints it and exits with 2.
    """


def register(kind: str, name: str | None = None) -> Callable[[T], T]:
    """Class decorator: makes the class selectable as `name` (default: the name of its file) among
    the parts of `kind`.

    Raises:
        ValueError: `kind` is unknown, or another class already has the name.
    """
    if kind not in PACKAGES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(PACKAGES)}")

    def add(cls: T) -> T:
        key = name or cls.__module__.rpartition(".")[2]
        other = _parts[kind].get(key)
        if other is not None and other.__qualname__ != cls.__qualname__:
            raise ValueError(f"{kind} {key!r} is already {other.__module__}.{other.__qualname__}")
        _parts[kind][key] = cls
        return cls

    return add


@cache
def _discover(kind: str) -> None:
    package = importlib.import_module(PACKAGES[kind])
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    for plugin in entry_points(group=PLUGINS):
        _import_all(plugin.load())


def _import_all(module: ModuleType) -> None:
    for inner in pkgutil.walk_packages(getattr(module, "__path__", ()), module.__name__ + "."):
        importlib.import_module(inner.name)


def names(kind: str) -> list[str]:
    """Names of all parts of a kind, sorted."""
    _discover(kind)
    return sorted(_parts[kind])


def find(kind: str, name: str, key: str = "") -> type:
    """The class registered under a name; `key` is where the name stands in the config.

    Raises:
        UserError: no part of this kind has the name.
    """
    _discover(kind)
    if not isinstance(name, str) or name not in _parts[kind]:
        raise UserError(unknown(f"{key or kind}={name}", str(name), _parts[kind]))
    return _parts[kind][name]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what}: unknown{hint} (one of: {', '.join(known) or 'nothing'})"


def knobs(cls: type) -> dict[str, object]:
    """The keyword-only arguments of a class with their types: the schema of its YAML."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def check(cls: type, values: Mapping[str, object], key: str) -> dict[str, Any]:
    """The values, converted to the types of the class's knobs.

    Raises:
        UserError: a knob is unknown, missing or of the wrong type.
    """
    schema = knobs(cls)
    for name in values:
        if name not in schema:
            raise UserError(unknown(f"{key}.{name}={values[name]}", name, schema))
    for name in schema:
        if name not in values:
            raise UserError(f"{key}.{name}: missing; set {key}.{name}=VALUE")
    return {name: _convert(f"{key}.{name}", values[name], kind) for name, kind in schema.items()}


def _convert(key: str, value: object, kind: object) -> object:
    literals = [choice for choice in (kind, *get_args(kind)) if get_origin(choice) is Literal]
    if literals:
        null = type(None) in get_args(kind)
        if value not in get_args(literals[0]) and not (null and value is None):
            allowed = [*map(str, get_args(literals[0])), *(["null"] if null else [])]
            raise UserError(f"{key}={value}: must be one of {', '.join(allowed)}")
        return value
    # a word out of a saved config, which OmegaConf would look up
    if isinstance(value, str) and "${" in value:
        if str not in (kind, *get_args(kind)):
            raise UserError(f"{key}={value}: must be {getattr(kind, '__name__', kind)}")
        return value
    try:
        converted = OmegaConf.to_container(OmegaConf.structured(_knob(kind)(value=value)))["value"]  # type: ignore[index, call-overload]
    except (OmegaConfBaseException, OverflowError):
        raise UserError(f"{key}={value}: must be {getattr(kind, '__name__', kind)}") from None
    if not _finite(converted):
        raise UserError(f"{key}={value}: must be finite, and a whole number have 64 bits")
    return converted


def _finite(value: object) -> bool:
    """Whether no number in a knob's value is infinite, NaN or larger than 64 bits."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, int | float) or (math.isfinite(value) and abs(value) < 2**63)


@cache
def _knob(kind: object) -> type:
    return make_dataclass("Knob", [("value", kind, MISSING)])


def make(kind: str, config: Mapping[str, Any], *sizes: object, key: str) -> Any:
    """The part that `config["name"]` names, built from its sizes and the other entries of `config`.

    Raises:
        UserError: the name or a knob is wrong; a range check of the constructor names its place in
            the config.
    """
    if not isinstance(config, Mapping):
        raise UserError(
            f"{key}={config}: must be a part with its options, such as {{name: NAME, ...}}"
        )
    values = dict(config)
    if "name" not in values:
        raise UserError(f"{key}.name: missing (one of: {', '.join(names(kind))})")
    cls = find(kind, values.pop("name"), key)
    checked = check(cls, values, key)
    try:
        return cls(*sizes, **checked)
    except ValueError as error:
        raise UserError(f"{key}.{error}") from error


def require(name: str, value: Any, allowed: bool, text: str) -> None:
    """Range check of a knob.

    Raises:
        ValueError: not allowed; the message is `name=value: text`.
    """
    if not allowed:
        raise ValueError(f"{name}={'null' if value is None else value}: {text}")
