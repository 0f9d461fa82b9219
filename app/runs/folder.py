"""The folder of a run, runs/NAME: config.yaml, checkpoints/, tb/, summary.json."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from app.config.compose import as_dict
from app.registry import UserError
from app.runs.resume import saved_config
from app.training.messages import is_first_rank
from app.training.trainer import fixed_to_machine

RUNS = Path("runs")
NAME = "ROUTER_ZOO_RUN"  # environment: the processes of one run share its name


def resolve(composed: DictConfig, overrides: list[str]) -> tuple[dict[str, Any], Path, list[str]]:
    """The config to run under, the folder of the run, and messages for the user. Writes nothing.

    Raises:
        UserError: the folder is taken, or there is nothing that could be resumed.
    """
    config = as_dict(composed)
    messages: list[str] = []
    folder = RUNS / run_name(config)
    exists = (folder / "config.yaml").exists()
    if config["resume"] and config["run"] is None:
        raise UserError("resume=true: say which run, run=NAME")
    if config["resume"] and exists:
        config, messages = saved_config(folder / "config.yaml", composed, overrides)
    elif config["resume"]:
        messages = [f"{folder} does not exist yet: starting afresh"]
    elif exists and is_first_rank() and NAME not in os.environ:
        raise UserError(f"run={folder.name}: {folder} exists; go on with resume=true, or choose another name")
    return config | {"trainer": fixed_to_machine(config["trainer"])}, folder, messages


def open_folder(folder: Path, config: dict[str, Any]) -> None:
    """Makes the folder and writes the resolved config into it."""
    os.environ[NAME] = folder.name
    if is_first_rank():
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")


def run_name(config: dict[str, Any]) -> str:
    """`run=NAME`, or date and time (and the number of the job, in a sweep)."""
    if config["run"] is not None:
        return str(config["run"])
    if NAME in os.environ:
        return os.environ[NAME]
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + (f"_{HydraConfig.get().job.num}" if sweep else "")
