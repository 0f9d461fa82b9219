"""Runs that callbacks look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from app.config.build import build_callbacks, build_loggers, build_module
from app.config.compose import as_dict
from app.data.module import TokenDataModule
from app.data.tokenizers.bytes import Bytes
from app.training.module import LanguageModel
from tests.support.toy_data import CONF, Toy

OFTEN = (
    "callbacks.expert_pictures.every=2",
    "callbacks.samples.every=2",
    "callbacks.samples.num_tokens=3",
)


def collapse(module: LanguageModel) -> None:
    for router in module.model.routers():
        router.register_forward_pre_hook(
            lambda router, args: (args[0], args[1]._replace(offset=_favour(router.num_experts)))
        )


def _favour(num_experts: int) -> Tensor:
    return -torch.arange(num_experts).float()


NANO = ("model=nano", "tokenizer=bytes", "schedule.warmup_steps=1")


def read_config(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return as_dict(compose("config", overrides=[*NANO, *overrides]))


class Run:
    """What a test sees of a finished run."""

    def __init__(self, folder: Path, trainer: lightning.Trainer, module: LanguageModel) -> None:
        self.folder = folder
        self.trainer = trainer
        self.module = module
        self.events = EventAccumulator(
            str(folder / "tb"), size_guidance={"tensors": 0, "scalars": 0, "images": 0}
        )
        self.events.Reload()

    def scalar(self, tag: str) -> list[float]:
        return [event.value for event in self.events.Scalars(tag)]


Start = Callable[..., Run]


def starter(tmp_path: Path) -> Start:
    """Trains in a folder; `callbacks` instead of those of the config."""

    def train(
        *overrides: str,
        steps: int = 4,
        validate_every: int = 2,
        log_every: int = 2,
        callbacks: list[lightning.Callback] | None = None,
        change: Callable[[LanguageModel], None] = lambda module: None,
        folder: Path = tmp_path / "run",
    ) -> Run:
        torch.manual_seed(0)
        config = read_config(*overrides)
        data = TokenDataModule(
            Toy(),
            Bytes(),
            0,
            seq_len=32,
            batch_size=4,
            micro_batch_size=2,
            val_rows=None,
            overfit_batches=None,
            max_epochs=None,
            num_workers=0,
            cache_dir=str(tmp_path / "cache"),
        )
        folder.mkdir(exist_ok=True)
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        data.prepare()
        parts = build_callbacks(config) if callbacks is None else callbacks
        shows = any(isinstance(part, ProgressBar) for part in parts)
        module = build_module(config, data.vocab_size, data.domains, 2)
        change(module)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=log_every,
            logger=[logger.open(folder, 0) for logger in build_loggers(config)],
            callbacks=parts,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            use_distributed_sampler=False,
            enable_progress_bar=shows,
        )
        trainer.fit(module, datamodule=data)
        return Run(folder, trainer, module)

    return train
