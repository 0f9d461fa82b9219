"""Overrides out of files: of a run folder, a study or its work directory, which somebody else may
have written.

They are handed to Hydra, which can run code, so only those are accepted that set values of our own
config groups.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from app.config.compose import PRESETS, config_groups, own_keys
from app.registry import UserError

# characters of an override in an error
LONGEST = 120
# below the folder of its group
OPTION = re.compile(r"[\w-]+(/[\w-]+)*")
# reads the environment, or calls a function
RESOLVER = re.compile(r"(?<!\\)(?:\\\\)*\$\{[^}]*:")


def require_own_overrides(where: str, overrides: Iterable[str]) -> None:
    """Check overrides that come out of a file.

    Args:
        where: The file or key that holds them, for the error.
        overrides: The overrides.

    Raises:
        UserError: One is a flag, a sweep, or no override; sets something outside of our config
            groups; chooses an option outside of the folder of its group; reads the environment; or
            names a class that a config may not.
    """
    for override in overrides:
        problem = _problem(override)
        if problem is not None:
            shown = override if len(override) <= LONGEST else f"{override[:LONGEST]}..."
            raise UserError(f"{where}: {shown!r} {problem}; remove it from there")


def _problem(override: str) -> str | None:
    """Return the problem of an override; None if it has none."""
    if override.startswith("-"):
        return "is a flag, not an override"
    try:
        parsed = OverridesParser.create().parse_override(override)
        value = None if parsed.is_delete() else parsed.value()
    except (HydraException, RecursionError) as error:
        return f"cannot be read as an override ({' '.join(str(error).split())[:80]})"
    if parsed.is_sweep_override():
        return "is a sweep, not a value"
    places = [parsed.key_or_group, *([parsed.package] if parsed.package else [])]
    strangers = [place for place in places if re.split(r"[/.]", place)[0] not in _allowed()]
    if strangers:
        return f"sets {strangers[0]}, which is none of our config groups"
    if calls_resolver(override):
        return "reads the environment or calls a resolver"
    return _wrong_option(parsed, value) or _wrong_target(parsed.key_or_group, value)


def calls_resolver(override: str) -> bool:
    """Whether a value is looked up outside of the config, such as `${oc.env:HOME}`."""
    return RESOLVER.search(override) is not None


def _allowed() -> set[str]:
    return {*own_keys(), *config_groups(), *PRESETS}


def _wrong_option(parsed: Override, value: object) -> str | None:
    """Whether an option of a group is a path that leads out of the group."""
    if "." in parsed.key_or_group:
        return None
    for option in value if isinstance(value, list) else [value]:
        if isinstance(option, str) and not OPTION.fullmatch(option):
            return f"chooses {option!r}, which is no option of a group"
    return None


def _wrong_target(key: str, value: object) -> str | None:
    """Whether a class is named that a config may not name."""
    targets = list(_targets(key, value))
    if not targets:
        return None
    # imports torch, and few overrides name a class
    from app.config.build import FOREIGN_BASES, foreign_class

    for place, target in targets:
        base = FOREIGN_BASES.get(re.split(r"[/.]", place)[0])
        if base is None:
            return f"names the class {target}; only {' and '.join(FOREIGN_BASES)} may name one"
        try:
            foreign_class(place, target, base)
        except UserError as error:
            return f"names a class: {error}"
    return None


def _targets(place: str, value: object) -> Iterator[tuple[str, str]]:
    """All classes that are named in a value, and where."""
    if place.endswith("_target_"):
        yield place.removesuffix("._target_"), str(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _targets(f"{place}.{key}", inner)
    if isinstance(value, list):
        for inner in value:
            yield from _targets(place, inner)
