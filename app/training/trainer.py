"""From the config group `trainer` to Lightning's Trainer."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from app.registry import UserError, require
from app.training.checkpoints import CheckpointFiles
from app.training.processes import environment, started
from app.training.saving import Checkpoints
from app.training.strategy import Accumulate, Format, make_strategy
from app.training.usage import Usage
from app.training.validation import Validations
from experts.grouped.device import is_native

COUNTS = (
    "devices",
    "num_nodes",
    "max_steps",
    "val_every",
    "log_every",
    "checkpoint_every",
    "timeout_s",
    "ep_size",
)
# of a run, and steps between them
VALIDATIONS = 10
LEAST_VAL_EVERY = 32


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long, on what and how exactly a run trains.

    Raises:
        ValueError: a number is out of range.
    """

    accelerator: str
    strategy: Literal["auto", "ddp", "fsdp", "ep"]
    ep_size: int
    devices: int
    num_nodes: int
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"]
    max_steps: int
    val_every: int
    log_every: int
    checkpoint_every: int
    checkpoint_minutes: float | None
    keep_checkpoints: int
    checkpoint_format: Format
    accumulate: Accumulate
    export_weights: str | None
    gradient_clip_val: float | None
    deterministic: bool | None
    threads: int | None
    timeout_s: int
    compile: bool
    detect_anomaly: bool
    skip_bad_steps: int

    def __post_init__(self) -> None:
        for name in COUNTS:
            require(name, getattr(self, name), getattr(self, name) >= 1, "must be at least 1")
        require(
            "keep_checkpoints",
            self.keep_checkpoints,
            self.keep_checkpoints >= 1,
            "must be at least 1",
        )
        what = self.accelerator
        allowed = ("auto", "cpu", "gpu")
        require(
            "accelerator",
            what,
            what != "mps",
            "is not supported (MPS has no float64); trainer=cpu always works",
        )
        require(
            "accelerator",
            what,
            what in allowed,
            "must be auto, cpu or gpu; trainer=cpu always works",
        )
        pure = self.precision == "bf16-true"
        require("precision", self.precision, not pure, "routers compute in float32; use bf16-mixed")
        require(
            "export_weights",
            self.export_weights,
            self.export_weights in (None, "last"),
            "must be last, or null",
        )
        require(
            "skip_bad_steps", self.skip_bad_steps, self.skip_bad_steps >= 0, "must be at least 0"
        )
        for name in ("checkpoint_minutes", "gradient_clip_val"):
            value = getattr(self, name)
            require(name, value, value is None or value > 0, "must be positive, or null")
        require(
            "threads",
            self.threads,
            self.threads is None or self.threads >= 1,
            "must be at least 1, or null",
        )
        single = self.strategy != "auto" or self.devices == self.num_nodes == 1
        require(
            "devices",
            self.devices,
            single,
            "needs trainer=ddp or trainer=fsdp to train on more than one device",
        )
        ranks = self.devices * self.num_nodes
        size = self.ep_size
        require("ep_size", size, size == 1 or self.strategy == "ep", "needs trainer=ep")
        require("ep_size", size, ranks % size == 0, f"must divide {ranks}, the number of processes")


def uses_gpu(accelerator: str) -> bool:
    """Return whether a run with this `trainer.accelerator` trains on GPUs:
    `auto` does where torch finds one.
    """
    return accelerator != "cpu" and torch.cuda.is_available()


def native_precision(accelerator: str) -> Literal["32-true", "bf16-mixed"]:
    """bfloat16 where the device computes in it,
    float32 where it would only emulate it (10 times slower).
    """
    if uses_gpu(accelerator):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = is_native(torch.bfloat16)
    return "bf16-mixed" if native else "32-true"


def device_line(config: TrainerConfig) -> str:
    """Return the first line of a run: device and precision."""
    processes = config.devices * config.num_nodes
    if uses_gpu(config.accelerator):
        device = f"{processes} x {torch.cuda.get_device_name()}"
    else:
        name = torch.cpu.get_capabilities().get("cpu_name", "unknown")
        each = f"{config.threads} threads" if config.threads != 1 else "1 thread"
        device = (
            f"CPU ({name}), {each}"
            if processes == 1
            else (f"CPU ({name}), {processes} processes of {each}")
        )
    line = f"training on {device}, in {config.precision}"
    others = torch.cuda.device_count() if uses_gpu(config.accelerator) else 0
    if others > config.devices and config.num_nodes == 1:
        line += f"; {others} GPUs are there: trainer=ddp trainer.devices={others} trains on all"
    if config.accelerator == "auto" and torch.backends.mps.is_available():
        line += "; the GPU of a Mac (MPS) is not supported"
    return line


def fixed_to_machine(trainer: dict[str, Any]) -> dict[str, Any]:
    """The group `trainer` with what `auto` and null mean for this run; decided once, a resumed run
    keeps it.

    Raises:
        UserError: a number of processes is none.
    """
    precision = trainer["precision"]
    threads = trainer["threads"]
    val_every = trainer["val_every"]
    there = dict(zip(("devices", "num_nodes"), started(), strict=True))
    trainer = trainer | {key: there[key] for key in there if trainer[key] == "auto"}
    for key in there:
        if not isinstance(trainer[key], int):
            raise UserError(f"trainer.{key}={trainer[key]}: must be a whole number, or auto")
    if val_every is None and isinstance(trainer["max_steps"], int):
        val_every = max(LEAST_VAL_EVERY, trainer["max_steps"] // VALIDATIONS)
    return trainer | {
        "val_every": val_every,
        "precision": native_precision(trainer["accelerator"]) if precision == "auto" else precision,
        # sums depend on it
        "threads": threads_per_process(trainer["devices"]) if threads is None else threads,
    }


def make_trainer(
    config: TrainerConfig, folder: Path, loggers: list[Logger], callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    """Return the Trainer of a run; checkpoints are in the run's folder.

    Raises:
        UserError: There is no GPU for `accelerator=gpu`, or Lightning refuses a value.
    """
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator=gpu: torch {torch.__version__} finds no GPU; trainer=cpu always "
            "works"
        )
    saving = (
        config.checkpoint_every,
        config.checkpoint_minutes,
        config.keep_checkpoints,
        config.timeout_s,
    )
    ours = [Usage(), Validations(config.val_every), Checkpoints(folder / "checkpoints", *saving)]
    try:
        return _trainer(config, folder, loggers, [*callbacks, *ours])
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"trainer.accelerator={config.accelerator}: {reason}; trainer=cpu always works"
        ) from error


def _trainer(
    config: TrainerConfig, folder: Path, loggers: list[Logger], callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    ranks = config.devices * config.num_nodes
    gpu = uses_gpu(config.accelerator)
    return lightning.Trainer(
        accelerator="cuda" if gpu else "cpu",
        strategy=make_strategy(
            config.strategy, ranks, config.timeout_s, config.checkpoint_format, config.accumulate
        ),
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=config.precision,  # type: ignore[arg-type]
        max_steps=config.max_steps,
        val_check_interval=config.val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        deterministic=not gpu if config.deterministic is None else config.deterministic,
        detect_anomaly=config.detect_anomaly,
        # the order of the rows is the data module's
        use_distributed_sampler=False,
        # ours, or none
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        # the budget table says more
        enable_model_summary=False,
        logger=loggers or False,
        callbacks=callbacks,
        enable_checkpointing=False,  # app.training.checkpoints
        plugins=[CheckpointFiles(), environment()],
        default_root_dir=folder,
    )


def threads_per_process(devices: int) -> int:
    """Threads of each process: what the environment says,
    else the cores of this machine shared among them.
    """
    return int(
        os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // max(1, devices))
    )
