"""The composed config outside of `train.py`: for the budget, the matching, tests and notebooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from app.plugins import add_plugin_configs

CONF = Path(__file__).parent.parent / "conf"


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of `python train.py OVERRIDES`, all references resolved.

    Raises:
        HydraException: an override does not exist or cannot be read; `app.errors.one_line` tells it.
    """
    if GlobalHydra.instance().is_initialized():
        return _plain(compose("config", list(overrides)))
    add_plugin_configs()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return _plain(compose("config", list(overrides)))


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
