"""Stands in the place of `app.registry` in a model that is given away,
whose config was checked when it was trained.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_parts: dict[tuple[str, str], type] = {}


class UserError(Exception):
    """A value does not exist or does not fit."""


def register(kind: str, name: str | None = None) -> Callable[[type], type]:
    """Class decorator: the class is found by the name of its file."""

    def add(cls: type) -> type:
        _parts[kind, name or cls.__module__.rpartition(".")[2]] = cls
        return cls

    return add


def find(kind: str, name: str, key: str = "") -> type:
    """The class registered under a name."""
    return _parts[kind, name]


def names(kind: str) -> list[str]:
    """Names of all parts of a kind."""
    return [name for of, name in _parts if of == kind]


def make(kind: str, entry: Mapping[str, Any], *sizes: Any, key: str) -> Any:
    """The part that an entry of the config describes."""
    return find(kind, entry["name"])(
        *sizes, **{name: value for name, value in entry.items() if name != "name"}
    )


def check(cls: type, values: Mapping[str, Any], key: str) -> dict[str, object]:
    """The values as they are."""
    return dict(values)


def require(name: str, value: object, allowed: bool, what: str) -> None:
    """Raises ValueError where a value is not allowed."""
    if not allowed:
        raise ValueError(f"{name}={value}: {what}")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist."""
    return f"{what}: unknown (one of: {', '.join(known)})"
