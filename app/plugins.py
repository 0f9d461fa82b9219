"""Lets installed packages add options to the config: the folder `conf` of every package with our entry point.

The package's classes are found by `app.registry` through the same entry point.
"""

from importlib.metadata import entry_points

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from app.registry import PLUGINS


class PluginConfigs(SearchPathPlugin):
    """Appends `pkg://PACKAGE.conf` for every plug-in."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in entry_points(group=PLUGINS):
            search_path.append(plugin.name, f"pkg://{plugin.value.split(':')[0]}.conf")


def add_plugin_configs() -> None:
    """Called before Hydra composes a config."""
    Plugins.instance().register(PluginConfigs)
