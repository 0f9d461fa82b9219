"""One run from the composed config to the summary:
decide, start the processes, train, write down.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from app.config.build import build_callbacks, build_loggers, build_trainer_config
from app.config.compose import Config, as_dict
from app.config.saved import RUNS
from app.cost.budget import Budget
from app.data.module import build_data
from app.fault_points import fault_point
from app.registry import NO_WRITE, UserError
from app.runs.folder import SUMMARY
from app.runs.init_weights import initialized_module, write_weights
from app.runs.resume import newest_checkpoint
from app.runs.start import decide, processes
from app.runs.summary import write_summary
from app.training.checkpoints import read_checkpoint, step_of
from app.training.messages import is_first_rank, say
from app.training.processes import agreed
from app.training.strategy import FullySharded
from app.training.trainer import make_trainer


def run(composed: DictConfig) -> None:
    """Trains and writes `summary.json`.

    Raises:
        UserError: something in the config is wrong; nothing was written then.
    """
    chosen = as_dict(composed)
    overrides = list(HydraConfig.get().overrides.task)
    with one_line_for_the_machine(), ExitStack() as held:
        deciding = partial(decide, chosen, overrides, held)
        with agreed(deciding, processes, chosen["trainer"]["timeout_s"]) as decision:
            if decision:
                train(decision["config"], Path(decision["folder"]), decision["checkpoint"])


def train(config: Config, folder: Path, checkpoint: str | None) -> None:
    """Trains under a checked config in an open folder; on every process."""
    step = step_of(Path(checkpoint)) if checkpoint else 0
    loggers = [logger.open(folder, step) for logger in build_loggers(config)]
    trainer = make_trainer(build_trainer_config(config), folder, loggers, build_callbacks(config))
    torch.set_num_threads(config["trainer"]["threads"])
    lightning.seed_everything(config["seed"], verbose=False)
    data = build_data(config["data"], config["tokenizer"], config["seed"], trainer.world_size)
    is_split = isinstance(trainer.strategy, FullySharded)
    module = initialized_module(config, data, folder, checkpoint, is_split)
    say(Budget.of(module.model, data.seq_len).table())
    if config["trainer"]["compile"]:
        module.compile_blocks()
    if is_first_rank():
        (folder / SUMMARY).unlink(missing_ok=True)  # of a shorter run
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if is_first_rank() and (last := newest_checkpoint(folder)) is not None:
        exported = config["trainer"]["export_weights"]
        saved = read_checkpoint(last, only_shapes=not exported)
        if exported:
            write_weights(folder, saved["state_dict"])
        fault_point("write summary")
        write_summary(folder, config, saved)


@contextmanager
def one_line_for_the_machine() -> Iterator[None]:
    """Tells a full disk, a folder that cannot be written and a process that is gone in one line.

    Raises:
        UserError: one of these happened.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_WRITE:
            raise
        where = error.filename or RUNS
        raise UserError(
            f"{where}: cannot be written ({error.strerror}); checkpoints are undamaged"
        ) from error
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not re.search(
            "Connection (closed|reset)|Timed out waiting|timed out|remote process exited", text
        ):
            raise
        raise UserError(
            "another process of the run has ended, or has not answered for trainer.timeout_s; go "
            "on from the newest checkpoint with resume=true"
        ) from error
