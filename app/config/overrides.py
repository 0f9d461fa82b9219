"""Overrides as they are typed: which key each one is about, and which give way to others."""

from collections.abc import Iterable, Sequence


def key_of(override: str) -> str:
    """The key or group that an override is about, written with dots."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def value_of(override: str) -> str:
    """What it is set to, as it was typed."""
    return override.partition("=")[2]


def combined(weaker: Iterable[str], stronger: Sequence[str]) -> list[str]:
    """Both, but of the weaker ones none that a stronger one chooses again, nor what lies inside its group.

    An override of one value in a group leaves the choice of the group alone.
    """
    again = [key_of(override) for override in stronger]
    kept = [o for o in weaker if not any(key_of(o) == key or key_of(o).startswith(f"{key}.") for key in again)]
    return [*kept, *stronger]


def last(overrides: Iterable[str], key: str) -> str | None:
    """The typed value of a key; None if it is not among them."""
    found = [value_of(override) for override in overrides if key_of(override) == key]
    return found[-1] if found else None
