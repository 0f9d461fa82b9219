"""The folder of a run, runs/NAME: config.yaml, checkpoints/, tb/, summary.json; and going on with one.

A resumed run keeps the config that it was saved with. Only where to stop and on what to run may be changed.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from app.parallel import is_first_rank
from app.registry import UserError
from app.trainer import native_precision, threads_of

RUNS = Path("runs")
NAME = "ROUTER_ZOO_RUN"  # environment: the processes of one run share its name
PLACE = tuple(f"trainer.{key}" for key in ("accelerator", "strategy", "devices", "num_nodes", "ep_size"))
LIMITS = ("trainer.max_steps", "trainer.threads", "trainer.timeout_s", "trainer.skip_bad_steps")
FREE = (*PLACE, *LIMITS, "callbacks", "run", "resume")


def settle(composed: DictConfig, overrides: list[str]) -> tuple[dict[str, Any], Path, list[str]]:
    """The config to run under, the folder of the run, and what there is to tell the user. Writes nothing.

    Raises:
        UserError: the folder is taken, or there is nothing that could be resumed.
    """
    config = plain(composed)
    if config["trainer"]["precision"] == "auto":  # decided once: a resumed run keeps it
        config["trainer"]["precision"] = native_precision(config["trainer"]["accelerator"])
    if config["trainer"]["threads"] is None:  # the order of sums depends on it
        config["trainer"]["threads"] = threads_of(config["trainer"]["devices"])
    folder = RUNS / run_name(config)
    if not config["resume"]:
        if (folder / "config.yaml").exists() and is_first_rank() and NAME not in os.environ:
            raise UserError(f"run={folder.name}: {folder} exists; go on with resume=true, or choose another name")
        return config, folder, []
    if config["run"] is None:
        raise UserError("resume=true: say which run, run=NAME")
    if not (folder / "config.yaml").exists():
        return config, folder, [f"{folder} does not exist yet: starting afresh"]
    saved: Any = OmegaConf.load(folder / "config.yaml")
    before = saved["trainer"]["threads"]
    config, ignored = _merged(saved, composed, overrides)
    told = [f"keeping {key}={kept} of {folder}, not {asked}" for key, kept, asked in ignored]
    threads = config["trainer"]["threads"] or threads_of(config["trainer"]["devices"])
    config["trainer"]["threads"] = threads
    if before not in (None, threads):
        told.append(f"trainer.threads={threads}, not {before}: sums are rounded otherwise from here on")
    return config, folder, told


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


def plain(config: DictConfig | Any) -> dict[str, Any]:
    """The config with all references resolved, as dictionaries."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _merged(
    saved: Any, composed: DictConfig, overrides: list[str]
) -> tuple[dict[str, Any], list[tuple[str, Any, Any]]]:
    ignored = []
    saved["trainer"] = OmegaConf.merge(composed["trainer"], saved["trainer"])  # what an older version did not know
    for key in (override.lstrip("+~").partition("=")[0].replace("/", ".") for override in overrides):
        for path in PLACE if key == "trainer" else [key]:
            asked, kept = OmegaConf.select(composed, path), OmegaConf.select(saved, path)
            if path.startswith(FREE):
                OmegaConf.update(saved, path, asked)
            elif asked != kept:
                ignored.append((path, _short(kept), _short(asked)))
    return plain(saved), ignored


def _short(value: Any) -> Any:
    return value.get("name", "other values") if isinstance(value, DictConfig) else value
