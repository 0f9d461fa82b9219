"""One run from the composed config to the summary: check, open the folder, prepare the text, train, write down."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from app.config.build import build_callbacks, build_logger, build_module, build_trainer_config
from app.cost.budget import Budget
from app.cost.match import matched
from app.data.cache import NO_WRITE
from app.data.module import TokenDataModule, build_data
from app.model.upcycle import upcycle_from
from app.registry import UserError
from app.runs.folder import open_folder, resolve
from app.runs.resume import resumable_checkpoint
from app.runs.summary import summarize
from app.training.expert_parallel import check_expert_parallel
from app.training.messages import say
from app.training.module import LanguageModel
from app.training.trainer import make_trainer, refuse_sweep_with_children


def run(composed: DictConfig) -> None:
    """Trains and writes `summary.json`.

    Raises:
        UserError: something in the config is wrong; nothing was written then.
    """
    overrides = list(HydraConfig.get().overrides.task)
    config, folder, messages = resolve(composed, overrides)
    check_config(config)
    if not (folder / "config.yaml").exists():  # a saved config is matched already
        config = matched(config, overrides)
    trainer = make_trainer(build_trainer_config(config), folder, build_logger(folder), build_callbacks(config))
    for line in messages:
        say(f"resume: {line}")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        refuse_sweep_with_children(trainer)
    torch.set_num_threads(config["trainer"]["threads"])
    with one_line_for_the_machine(folder):
        data = build_data(config["data"], config["tokenizer"], config["seed"])
        data.prepare()  # unusable text leaves no folder behind
        open_folder(folder, config)
        train(config, folder, trainer, data)


def check_config(config: dict[str, Any]) -> None:
    """Builds everything that needs no data, without memory: mistakes in the config end here.

    Raises:
        UserError: a name or a value does not exist or does not fit.
    """
    seed = config["seed"]
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number in 0..{2**32 - 1}")
    trainer_config = build_trainer_config(config)
    build_data(config["data"], config["tokenizer"], config["seed"])
    build_callbacks(config)
    with torch.device("meta"):
        module = build_module(config, vocab_size=1, domains=["text"])
    check_expert_parallel(module.model, trainer_config.ep_size)


def train(config: dict[str, Any], folder: Path, trainer: lightning.Trainer, data: TokenDataModule) -> None:
    """Trains under a checked config in an open folder."""
    started = time.monotonic()
    lightning.seed_everything(config["seed"], verbose=False)
    module = build_module(config, data.vocab_size, data.domains)
    module.corpus = data.corpus_fingerprint
    budget = Budget.of(module.model, data.seq_len)
    say(budget.table())
    checkpoint = resumable_checkpoint(module, config, folder)
    if checkpoint is None and config["upcycle"]["checkpoint"] is not None:
        upcycle_from(module.model, config["upcycle"], config["seed"])
    if config["trainer"]["compile"]:
        module.compile_blocks()
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step % config["trainer"]["val_every"]:
        trainer.validate(module, datamodule=data, verbose=False)
    finish(trainer, module, folder, budget.summary() | about(config, data) | {"wall_s": time.monotonic() - started})


def about(config: dict[str, Any], data: TokenDataModule) -> dict[str, Any]:
    """What tells two runs apart, or shows that they compare."""
    return {"seed": config["seed"], "corpus_fingerprint": data.corpus_fingerprint}


def finish(trainer: lightning.Trainer, module: LanguageModel, folder: Path, known: dict[str, Any]) -> None:
    """Writes the summary, with what is `known` of the run beside what the training has measured."""
    summary = summarize(trainer, module) | known
    if trainer.is_global_zero:
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    say(f"{summary['val_bpb']:.3f} bits per byte. The run lies in {folder}; look at its experts with")
    say(f"  tensorboard --logdir {folder.parent}")


@contextmanager
def one_line_for_the_machine(folder: Path) -> Iterator[None]:
    """Tells a full disk, a folder that cannot be written and a process that is gone in one line.

    Raises:
        UserError: one of these happened.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_WRITE:
            raise
        where = error.filename or folder
        raise UserError(
            f"{where}: cannot be written ({error.strerror}); checkpoints in {folder} are undamaged"
        ) from error
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not re.search("Connection (closed|reset)|Timed out waiting|timed out|remote process exited", text):
            raise
        raise UserError(
            f"another process of the run has ended or hung ({text[-120:]}); resume=true goes on from the newest "
            f"checkpoint in {folder}"
        ) from error
