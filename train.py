"""Trains a mixture-of-experts language model: `python train.py router=topk experts=deepseek`."""

import os
import sys
from pathlib import Path

import app.config.environment  # noqa: F401  before torch

# Hydra hands its errors to us instead of printing them on several lines
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from omegaconf import DictConfig

from app.config.compose import add_plugin_configs, readable
from app.config.errors import exit_on_mistake
from app.config.help import register_resolver
from app.config.saved import with_options_of_source, with_saved_overrides


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """One run, under the composed config."""
    # torch takes seconds to import, and --help needs none of it
    from app.runs.run import run

    run(config)


if __name__ == "__main__":
    # launchers of sweeps start processes that import this code from wherever they are
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.getenv("PYTHONPATH")])]
    )
    add_plugin_configs()
    register_resolver()
    with exit_on_mistake():
        sys.argv[1:] = with_options_of_source(with_saved_overrides(readable(sys.argv[1:])))
        main()
