"""The composed config, also outside of `train.py`: for the budget, the matching, tests and notebooks.

Installed packages with our entry point add the options in their folder `conf`; their classes are found by
`app.registry` through the same entry point.
"""

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from app.registry import PLUGINS

CONF = Path(__file__).parents[2] / "conf"


class PluginConfigs(SearchPathPlugin):
    """Appends `pkg://PACKAGE.conf` for every plug-in."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in entry_points(group=PLUGINS):
            search_path.append(plugin.name, f"pkg://{plugin.value.split(':')[0]}.conf")


def add_plugin_configs() -> None:
    """Called before Hydra composes a config."""
    Plugins.instance().register(PluginConfigs)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of `python train.py OVERRIDES`, all references resolved.

    Raises:
        HydraException: an override does not exist or cannot be read; `app.config.errors.one_line` tells it.
    """
    if GlobalHydra.instance().is_initialized():
        return as_dict(compose("config", list(overrides)))
    add_plugin_configs()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return as_dict(compose("config", list(overrides)))


def read_config(path: Path) -> dict[str, Any]:
    """A saved config, as dictionaries."""
    return as_dict(OmegaConf.load(path))


def as_dict(config: Any) -> dict[str, Any]:
    """A config with all references resolved, as dictionaries."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
