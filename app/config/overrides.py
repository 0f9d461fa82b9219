"""Overrides as they are typed: which key each one is about, which give way to others,
and what is a path.
"""

import os
import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def key_of(override: str) -> str:
    """The key or group that an override is about, written with dots."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def value_of(override: str) -> str:
    """What it is set to, as it was typed."""
    return override.partition("=")[2]


def combined(weaker: Iterable[str], stronger: Sequence[str]) -> list[str]:
    """Both, but of the weaker ones none that a stronger one chooses again, nor what lies inside its
    group.

    An override of one value in a group leaves the choice of the group alone.
    """
    again = [key_of(override) for override in stronger]
    kept = [
        o
        for o in weaker
        if not any(key_of(o) == key or key_of(o).startswith(f"{key}.") for key in again)
    ]
    return [*kept, *stronger]


def last(overrides: Iterable[str], key: str) -> str | None:
    """The typed value of a key; None if it is not among them."""
    found = [value_of(override) for override in overrides if key_of(override) == key]
    return found[-1] if found else None


def path_quoted(override: str) -> str:
    """The override, quoted where its value names something on the disk, or in the home folder, that
    Hydra would read as syntax; no file need be renamed for its name.
    """
    value = value_of(override)
    if not (value.startswith("~/") or os.path.lexists(value)) or _is_plain(override):
        return override
    inner = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value)
    return override.removesuffix(value) + "'" + inner.replace("${", r"\${") + "'"


def _is_plain(override: str) -> bool:
    """Whether Hydra reads the value as it stands: as that word, a number, true, false or null."""
    value = value_of(override)
    try:
        read = OverridesParser.create().parse_override(override).value()
    except HydraException:
        return False
    return "${" not in value and (read == value or read is None or isinstance(read, int | float))
