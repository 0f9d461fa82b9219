"""The start of a run on its first process: everything that can be wrong is found here, before a
file is written.

Afterwards the folder of the run is open, and the decision holds all that its processes need.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from app.config.build import (
    build_callbacks,
    build_loggers,
    build_module,
    build_trainer_config,
)
from app.config.compose import Config
from app.config.init import RunInit, build_init
from app.config.overrides import key_of
from app.config.own_overrides import calls_resolver
from app.config.saved import CONFIG, OVERRIDES, RUNS, dumped, folder_of_weights, listed
from app.cost.match import matched
from app.data.module import TokenDataModule, build_data
from app.data.notice import SlowNotice
from app.registry import UserError
from app.runs.folder import SUMMARY, NameTakenError, opened, run_name, taken
from app.runs.inherit import with_model_of_source
from app.runs.init_weights import checkpoint_to_resume, weights_source
from app.runs.read import require_same_text
from app.runs.resume import saved_config
from app.runs.summary import is_validated, write_summary
from app.runs.text import ABOUT, read_text, text_files
from app.training.checkpoints import read_checkpoint, step_of
from app.training.expert_parallel import check_expert_parallel
from app.training.messages import say
from app.training.processes import Decision, require_starter
from app.training.trainer import TrainerConfig, device_line, fixed_to_machine, make_trainer

# A key, and what must be set so that it has an effect.
WITHOUT_EFFECT: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "match.by": ("match.reference", lambda config: config["match"]["reference"] is not None),
    "init.drop_share": ("init.how=drop", lambda config: config["init"].get("how") == "drop"),
}


def processes(decision: Decision) -> int:
    """How many a decision needs; none where nothing is left to do."""
    trainer = decision["config"]["trainer"] if decision else {"devices": 0, "num_nodes": 0}
    return int(trainer["devices"] * trainer["num_nodes"])


def decide(chosen: Config, overrides: list[str], held: ExitStack) -> Decision:
    """Config, folder and checkpoint of a run, whose folder is then open until `held` ends; empty if
    it is finished.

    Raises:
        UserError: something is wrong; nothing was written then.
    """
    folder = RUNS / run_name(chosen, overrides)
    config, overrides, goes_on = _resolved(chosen, overrides, folder)
    checkpoint = checkpoint_to_resume(folder)
    if checkpoint is not None and step_of(checkpoint) >= config["trainer"]["max_steps"]:
        return _nothing_to_do(config, folder, checkpoint)
    with SlowNotice(say, device_line(check_config(config))) as device:
        # a saved config is matched already
        if not goes_on:
            config = matched(config, overrides)
        if checkpoint is None:
            weights_source(config).check()
        data = _text(config, folder)
        if checkpoint is None:
            weights_source(config).check_tokenizer(data.tokenizer)
        device.print_now()
    init = build_init(config)
    is_run = isinstance(init, RunInit) and folder_of_weights(init.checkpoint) is not None
    if checkpoint is None and is_run:
        say(
            f"init.checkpoint={config['init']['checkpoint']}: uses its model, router, experts, "
            "balance and tokenizer, except for overrides"
        )
    config = config | {"data": config["data"] | data.source.pinned}
    files: dict[str, Any] = {CONFIG: dumped(config), OVERRIDES: listed(_lasting(overrides))}
    files |= text_files(data)
    try:
        held.enter_context(opened(folder, files, new=not goes_on))
    except NameTakenError:
        if chosen["run"] is not None:
            raise
        # another run of the same second was faster
        folder = RUNS / run_name(chosen, overrides)
        held.enter_context(opened(folder, files, new=True))
    return {"config": config, "folder": str(folder), "checkpoint": checkpoint and str(checkpoint)}


def check_config(config: Config) -> TrainerConfig:
    """Build everything that needs no text, without memory: mistakes in the config end here.

    Returns:
        How the run trains.

    Raises:
        UserError: a name or a value does not exist or does not fit.
    """
    seed = config["seed"]
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number in 0..{2**32 - 1}")
    trainer = build_trainer_config(config)
    require_starter(
        trainer.devices, trainer.num_nodes, sweep=HydraConfig.get().mode == RunMode.MULTIRUN
    )
    data = build_data(
        config["data"], config["tokenizer"], seed, trainer.devices * trainer.num_nodes
    )
    make_trainer(trainer, RUNS, [], build_callbacks(config))
    build_loggers(config)
    with torch.device("meta"):
        module = build_module(config, 1, ["text"], data.micro_batch_size)
    check_expert_parallel(module.model, trainer.ep_size)
    return trainer


def _resolved(chosen: Config, overrides: list[str], folder: Path) -> tuple[Config, list[str], bool]:
    """The config to run under, the overrides that lead to it,
    and whether it is that of a run that goes on.
    """
    if chosen["resume"] and chosen["run"] is None:
        raise UserError("resume=true: say which run, run=NAME")
    goes_on = (folder / CONFIG).exists()
    messages = [
        f"{key}: has no effect without {needed}"
        for key, (needed, has_effect) in WITHOUT_EFFECT.items()
        if key in map(key_of, overrides) and not has_effect(chosen)
    ]
    if goes_on and not chosen["resume"]:
        raise taken(folder)
    if goes_on:
        chosen, overrides, kept = saved_config(folder, chosen, overrides)
        messages = [f"resume: {line}" for line in kept]
    else:
        chosen = with_model_of_source(chosen, overrides)
    if chosen["resume"] and not goes_on:
        messages.append(f"resume: {folder} does not exist yet: starting afresh")
    for line in messages:
        say(line)
    return chosen | {"trainer": fixed_to_machine(chosen["trainer"])}, overrides, goes_on


def _lasting(overrides: list[str]) -> list[str]:
    """Return the overrides that describe the run and not this start: the last one of each key.

    A value that comes from outside of the config, such as `${oc.env:TEXT}`, is in the saved config
    only.
    """
    last = {key_of(override): override for override in overrides}
    lasting = {key: override for key, override in last.items() if key not in ("run", "resume")}
    return [override for override in lasting.values() if not calls_resolver(override)]


def _nothing_to_do(config: Config, folder: Path, checkpoint: Path) -> Decision:
    """Says so; a run that was killed just before its summary gets it."""
    saved = read_checkpoint(checkpoint, only_shapes=True)
    if not (folder / SUMMARY).exists() and is_validated(saved):
        write_summary(folder, config, saved)
    say(
        f"{folder} is at step {step_of(checkpoint)}, and "
        f"trainer.max_steps={config['trainer']['max_steps']}: nothing to do; raise "
        "trainer.max_steps to go on"
    )
    return {}


def _text(config: Config, folder: Path) -> TokenDataModule:
    """The text of the run, tokenised; that of a run that goes on must be the one it knows."""
    trainer = config["trainer"]
    ranks = trainer["devices"] * trainer["num_nodes"]
    data = build_data(config["data"], config["tokenizer"], config["seed"], ranks)
    data.prepare()
    data.require_enough()
    if (folder / ABOUT).exists():
        require_same_text(folder, read_text(folder, config), data)
    return data
