"""The composed config, also outside of `train.py`: for the budget, the matching, tests and
notebooks.

Installed packages with our entry point add the options in their folder `conf`; their classes are
found by `app.registry` through the same entry point.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from app.config.hints import unknown_key
from app.config.overrides import path_quoted
from app.registry import PLUGINS, UserError, unknown

CONF = Path(__file__).parents[2] / "conf"
# Groups that a run can do without.
OPTIONAL = ("balance", "callbacks", "logger")
# The key of a group that only its options set.
SET_BY_OPTION = {"router": "score", "experts": "name"}
# Groups of values for all other groups; null by default.
PRESETS = ("experiment", "debug")
Config = dict[str, Any]


class PluginConfigs(SearchPathPlugin):
    """Appends `pkg://PACKAGE.conf` for every plug-in."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in entry_points(group=PLUGINS):
            search_path.append(plugin.name, f"pkg://{plugin.value.split(':')[0]}.conf")


def add_plugin_configs() -> None:
    """Make the config folders of plug-ins known; call it before Hydra composes a config."""
    Plugins.instance().register(PluginConfigs)


def composed(overrides: Sequence[str]) -> Config:
    """The config of `python train.py OVERRIDES`, all references resolved.

    Raises:
        HydraException: an override does not exist or cannot be read; `app.config.errors.one_line`
            tells it.
        UserError: as `as_dict`.
    """
    overrides = readable(overrides)
    if GlobalHydra.instance().is_initialized():
        return as_dict(compose("config", overrides))
    add_plugin_configs()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return as_dict(compose("config", overrides))


def readable(overrides: Sequence[str]) -> list[str]:
    """Return overrides that Hydra can read.

    `GROUP=null` and `~GROUP` take a group away, and a path is a path whatever its characters.
    """
    groups = config_groups()
    words = []
    for word in overrides:
        group = word.removesuffix("=null").removeprefix("~")
        takes_away = word in (f"{group}=null", f"~{group}")
        if word == f"{group}=null" and group in PRESETS:
            # A preset is null by default.
            continue
        if takes_away and group in groups:
            words.append(_without_group(group))
        else:
            words.append(path_quoted(word))
    return words


def _without_group(group: str) -> str:
    """Return the override that takes a group away: its option `none`, where it has one."""
    has_none = (CONF / group / "none.yaml").exists()
    return f"{group}=none" if has_none else f"~{group}"


def as_dict(config: Any) -> Config:
    """A composed config with all references resolved, as dictionaries.

    Raises:
        UserError: a group that a run needs was taken away, or there is a key that nothing reads.
    """
    require_groups(config)
    plain = require_known_keys(OmegaConf.to_container(config, resolve=True))
    return plain | {"data": with_whole_sources(plain["data"])}


def with_whole_sources(data: Config) -> Config:
    """Return the group `data` with each of `sources` completed by the option that it names.

    Raises:
        UserError: A source is no set of keys, or names an option that does not exist.
    """
    if not isinstance(data.get("sources"), dict):
        return data
    whole = {name: _whole_source(name, given) for name, given in data["sources"].items()}
    return {**data, "sources": whole}


def _whole_source(name: str, given: Any) -> Config:
    """Return one of `data.sources`: the values of its option, then its own."""
    key = f"data.sources.{name}"
    if not isinstance(given, dict):
        raise UserError(f"{key}={given}: must be keys, such as {{path: {given}}}")
    option = str(given.get("data", "text"))
    # A path would lead out of the group.
    if not re.fullmatch(r"[\w-]+", option):
        raise UserError(
            f"{key}.data={option}: must be the name of an option of the group data, such as text"
        )
    values: Config = {}
    if "source" not in given:
        try:
            values.update(composed([f"data={option}"])["data"])
        except MissingConfigException as error:
            line = unknown(f"{key}.data={option}", option, error.options or ())
            raise UserError(line) from error
    values.update(given)
    # Rows and batches are cut from all sources together.
    for shared in ("data", *_keys_of_rows()):
        values.pop(shared, None)
    return with_whole_sources(values)


def require_groups(config: Any) -> None:
    """Check that every group but the optional ones has an option.

    Raises:
        UserError: A group has none.
    """
    for group in config_groups():
        if "/" in group or group in OPTIONAL:
            continue
        values = config.get(group)
        if isinstance(values, Mapping):
            # Another group has values inside of this one: only its own options set this key.
            key = SET_BY_OPTION.get(group)
            if key is None or key in values:
                continue
            values = None
        options = options_of(CONF / group)
        shown = "null" if values is None else values
        raise UserError(f"{group}={shown}: a run needs one; choose one of {', '.join(options)}")


def require_known_keys(config: Any) -> Config:
    """Return the config; the parts that its groups build check what is inside of the groups.

    Raises:
        UserError: It has a key that no run reads.
    """
    own = own_keys()
    groups = config_groups()
    known = {key: value for key, value in config.items() if key in own or key in groups}
    for key, value in config.items():
        if key not in known:
            raise UserError(unknown_key(str(key), known, CONF))
        if isinstance(own.get(key), bool) and not isinstance(value, bool):
            raise UserError(f"{key}={value}: must be true or false")
    for section in own.keys() - {*groups}:
        if isinstance(own[section], dict) and isinstance(config.get(section), dict):
            _require_known(section, config[section], own[section])
    return config


def _require_known(section: str, values: Config, known: Config) -> None:
    for key, value in values.items():
        if key not in known:
            raise UserError(unknown(f"{section}.{key}={value}", key, known))


@cache
def own_keys() -> Config:
    """Values that are in `config.yaml` itself, by key."""
    root: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    return {key: value for key, value in root.items() if key not in ("defaults", "hydra")}


@cache
def _keys_of_rows() -> list[str]:
    """Return the keys that all options of the group `data` share."""
    return [str(key) for key in OmegaConf.load(CONF / "data" / "_base.yaml")]


def options_of(folder: Path) -> list[str]:
    """Return the options of the group in a folder, without the bases of others, such as `_base`."""
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


@cache
def config_groups() -> list[str]:
    """Return the groups of the defaults list that make a key of the config."""
    root: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    groups = []
    for entry in root["defaults"]:
        # An entry is `_self_`, or has one group: `override hydra/...` makes no key of ours.
        if isinstance(entry, dict):
            groups += [name for name in entry if " " not in name and name not in PRESETS]
    return groups
