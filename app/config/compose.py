"""The composed config, also outside of `train.py`: for the budget, the matching, tests and
notebooks.

Installed packages with our entry point add the options in their folder `conf`; their classes are
found by `app.registry` through the same entry point.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
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
# null takes the whole group away
OPTIONAL = ("balance", "callbacks", "logger")
# a key that only an option sets
SET_BY_OPTION = {"data": "source", "router": "score", "experts": "name"}
# groups of values for all the others, null by default
PRESETS = ("experiment", "debug")
Config = dict[str, Any]


class PluginConfigs(SearchPathPlugin):
    """Appends `pkg://PACKAGE.conf` for every plug-in."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in entry_points(group=PLUGINS):
            search_path.append(plugin.name, f"pkg://{plugin.value.split(':')[0]}.conf")


def add_plugin_configs() -> None:
    """Called before Hydra composes a config."""
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
    """Overrides that Hydra can read: GROUP=null or ~GROUP takes a group away (a preset is none by
    default), a path is a path whatever its characters.
    """
    words = [
        path_quoted(word)
        for word in overrides
        if word not in [f"{group}=null" for group in PRESETS]
    ]
    away = {
        group: f"{group}=none" if (CONF / group / "none.yaml").exists() else f"~{group}"
        for group in config_groups()
    }
    nulls = {
        word: instead for group, instead in away.items() for word in (f"{group}=null", f"~{group}")
    }
    return [nulls.get(word, word) for word in words]


def as_dict(config: Any) -> Config:
    """A composed config with all references resolved, as dictionaries.

    Raises:
        UserError: a group that a run needs was taken away, or there is a key that nothing reads.
    """
    require_groups(config)
    plain = require_known_keys(OmegaConf.to_container(config, resolve=True))
    return plain | {"data": with_whole_sources(plain["data"])}


def with_whole_sources(data: Config) -> Config:
    """The group `data`, where each of `sources` is completed by the option of this group that it
    names.

    Raises:
        UserError: one is no set of keys, or names an option that does not exist.
    """
    if not isinstance(data.get("sources"), dict):
        return data
    whole = {}
    for name, given in data["sources"].items():
        key = f"data.sources.{name}"
        if not isinstance(given, dict):
            raise UserError(f"{key}={given}: must be keys, such as {{path: {given}}}")
        option = given.get("data", "text")
        # a path would lead out of the group
        if not re.fullmatch(r"[\w-]+", str(option)):
            raise UserError(
                f"{key}.data={option}: must be the name of an option of the group "
                "data, such as text"
            )
        try:
            own = {} if "source" in given else composed([f"data={option}"])["data"]
        except MissingConfigException as error:
            raise UserError(
                unknown(f"{key}.data={option}", str(option), error.options or ())
            ) from error
        inner = {knob: value for knob, value in {**own, **given}.items() if knob != "data"}
        whole[name] = with_whole_sources(
            {k: v for k, v in inner.items() if k not in own_keys()["data"]}
        )
    return data | {"sources": whole}


def require_groups(config: Any) -> None:
    """Checks that every group but the optional ones has an option.

    Raises:
        UserError: one has none.
    """
    for group in {group for group in config_groups() if "/" not in group} - set(OPTIONAL):
        chosen = config.get(group)
        some = isinstance(chosen, Mapping)
        if not some or SET_BY_OPTION.get(group, group) not in {group, *chosen}:
            options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            has = "null" if some or chosen is None else chosen
            raise UserError(f"{group}={has}: a run needs one; choose one of {', '.join(options)}")


def require_known_keys(config: Any) -> Config:
    """The config; what is inside of the groups is checked by the parts that they build.

    Raises:
        UserError: it has a key that no run reads.
    """
    own = own_keys()
    groups = config_groups()
    for key, value in config.items():
        if key not in own and key not in groups:
            raise UserError(
                unknown_key(
                    str(key), {k: config[k] for k in config if k in own or k in groups}, CONF
                )
            )
        if isinstance(own.get(key), bool) and not isinstance(value, bool):
            raise UserError(f"{key}={value}: must be true or false")
    for group in own.keys() - {*groups}:
        inner = config.get(group)
        for key in (
            (inner if isinstance(inner, dict) else ()) if isinstance(own[group], dict) else ()
        ):
            if key not in own[group]:
                raise UserError(unknown(f"{group}.{key}={inner[key]}", key, own[group]))
    return config


@cache
def own_keys() -> Config:
    """Values that are in `config.yaml` itself, by key."""
    root: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    return {key: value for key, value in root.items() if key not in ("defaults", "hydra")}


@cache
def config_groups() -> list[str]:
    """The groups of its defaults list that make a key of the config."""
    entries: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))["defaults"]  # type: ignore[index, call-overload]
    chosen: Iterable[str] = (name for entry in entries if isinstance(entry, dict) for name in entry)
    return [name for name in chosen if " " not in name and name not in PRESETS]
