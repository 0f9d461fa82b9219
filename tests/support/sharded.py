"""Training steps of a small model on one process or several, without files."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from app.config.build import build_module, build_trainer_config
from app.training.checkpoints import CheckpointFiles
from app.training.metrics import Total, routing_sums
from app.training.module import LanguageModel
from app.training.sharding import full_tensor
from app.training.strategy import FullySharded, make_strategy

Gradients = dict[str, Tensor]


ROWS = 4


LENGTH = 16


VOCAB = 64


RATE = 1000.0


CLIP = ("trainer.gradient_clip_val=null", "data.micro_batch_size=1", "schedule.warmup_steps=0")


# 12 routed experts and a shared one
EVEN = ("experts=deepseek", "experts.num_experts=7", "experts.num_shared=2")


def ragged_batch() -> dict[str, Tensor]:
    """Four rows of 16 tokens, so padded that every cut has another number of targets.

    The second repeats one token, so all its positions choose alike and most experts are idle on
    that row's rank alone.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH + 1), generator=generator)
    tokens[1] = 7
    lengths = torch.tensor([LENGTH, LENGTH // 2, LENGTH, LENGTH // 4])
    valid = torch.arange(LENGTH) < lengths[:, None]
    zeros = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    targets = tokens[:, 1:].masked_fill(~valid, -100)
    return {
        "tokens": tokens[:, :-1],
        "targets": targets,
        "valid": valid,
        "document": zeros,
        "domain": zeros,
        "topic": zeros,
        "nbytes": zeros + 1,
    }


def gradients(config: dict[str, Any], rank: int = 0, ranks: int = 1) -> Gradients:
    """What one step of SGD without momentum subtracts from the parameters, over its rate: the
    gradient.

    At a rate of 1000 it is not lost in the rounding of the weights.
    """
    starved = config["callbacks"].pop("starve", 0)
    config["optimizer"] = {"_target_": "torch.optim.SGD", "lr": RATE, "momentum": 0.0}
    lightning.seed_everything(0, verbose=False)
    module = build_module(config, VOCAB, ["text"], config["data"]["micro_batch_size"])
    # the choice never falls on the first experts
    if starved:
        module.model.balancer.terms["loss_free"].bias[:, :starved] = -100.0
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    trainer = bare_trainer(config, ranks, 1)
    trainer.fit(module, DataLoader([batch], batch_size=None))
    steps = {
        name: (before[name] - full_tensor(value.detach())) / RATE
        for name, value in module.named_parameters()
    }
    return steps | {"norm": trainer.callback_metrics["train/grad_norm"]}


def bare_trainer(config: dict[str, Any], ranks: int, steps: int) -> lightning.Trainer:
    chosen = build_trainer_config(config)
    return lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=make_strategy(
            chosen.strategy, ranks, chosen.timeout_s, chosen.checkpoint_format, chosen.accumulate
        ),
        precision=config["trainer"]["precision"],
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        plugins=[CheckpointFiles()],
    )


def as_run(config: dict[str, Any], trainer: lightning.Trainer) -> LanguageModel:
    """The module as a run has it: without its matrices where it will be split."""
    whole = not isinstance(trainer.strategy, FullySharded)
    return build_module(config, VOCAB, ["text"], config["data"]["micro_batch_size"], whole)


def go_on(
    config: dict[str, Any],
    steps: int,
    before: Path | None,
    after: Path,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Trains up to a step, from one checkpoint to another."""
    lightning.seed_everything(0, verbose=False)
    trainer = bare_trainer(config, ranks, steps)
    module = as_run(config, trainer)
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    trainer.fit(
        module, DataLoader([batch] * 9, batch_size=None), ckpt_path=before, weights_only=True
    )
    trainer.save_checkpoint(after)
    trainer.strategy.checkpoint_io.wait()


def trained(
    config: dict[str, Any], rank: int, ranks: int, steps: int = 2
) -> tuple[LanguageModel, Total]:
    """A module after some steps on the same rows, and the sums of all its routings."""
    lightning.seed_everything(0, verbose=False)
    module = build_module(config, VOCAB, ["text"], config["data"]["micro_batch_size"])
    total = Total()
    module.routing_hooks.append(lambda routings, batch: total.add(routing_sums(routings)))
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    bare_trainer(config, ranks, steps).fit(module, DataLoader([batch] * steps, batch_size=None))
    return module, total
