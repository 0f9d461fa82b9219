"""The gradient of a step does not depend on how its rows are cut into micro-batches or dealt to ranks."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

from app.build import build_module, build_trainer_config
from app.trainer import make_strategy

Gradients = dict[str, Tensor]
ROWS, LENGTH, VOCAB = 4, 16, 64
CLIP = ("trainer.gradient_clip_val=null", "data.micro_batch_size=1", "schedule.warmup_steps=0")
PARTS = {
    "topk": ("balance=none",),
    "sequence aux, bias": ("balance=[aux,loss_free]", "balance.aux.scope=sequence", "router/weigh=sigmoid"),
    "gru": ("router=gru", "balance=none"),
    "coarse": ("experts=coarse", "balance=none"),
}


def ragged_batch() -> dict[str, Tensor]:
    """Four rows of 16 tokens: full, half and a quarter padded, so that every cut has another number of targets."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH + 1), generator=generator)
    lengths = torch.tensor([LENGTH, LENGTH // 2, LENGTH, LENGTH // 4])
    valid = torch.arange(LENGTH) < lengths[:, None]
    zeros = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    targets = tokens[:, 1:].masked_fill(~valid, -100)
    return {"tokens": tokens[:, :-1], "targets": targets, "valid": valid, "document": zeros, "domain": zeros,
            "topic": zeros, "nbytes": zeros + 1}  # fmt: skip


def gradients(config: dict[str, Any], rank: int = 0, ranks: int = 1) -> Gradients:
    """What one step of SGD at rate 1 without momentum subtracts from the parameters: the gradient."""
    config["optimizer"] = {"_target_": "torch.optim.SGD", "lr": 1.0, "momentum": 0.0}
    lightning.seed_everything(0, verbose=False)
    module = build_module(config, VOCAB, ["text"])
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=make_strategy(build_trainer_config(config)),
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return {name: before[name] - whole(value.detach()) for name, value in module.named_parameters()}


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def on_ranks(config: dict[str, Any], ranks: int, folder: Path) -> Gradients:
    """The same on several processes, as rank 0 sees it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_worker, (ranks, port, config, folder / "gradients.pt"), nprocs=ranks, start_method="fork")
    return torch.load(folder / "gradients.pt", weights_only=True)


def _worker(rank: int, ranks: int, port: int, config: dict[str, Any], result: Path) -> None:
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    found = gradients(config, rank, ranks)
    if rank == 0:
        torch.save(found, result)
    torch.distributed.destroy_process_group()


def assert_equal(one: Gradients, two: Gradients) -> None:
    norm = torch.cat([value.flatten() for value in one.values()]).norm()
    assert norm > 0
    for name, value in one.items():
        assert (value - two[name]).norm() <= 1e-5 * norm, name


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_accumulated_micro_batches_have_the_gradient_of_one_batch(
    compose: Callable[..., dict[str, Any]], parts: tuple[str, ...]
) -> None:
    one = gradients(compose(*parts, *CLIP, f"data.micro_batch_size={ROWS}"))
    assert_equal(one, gradients(compose(*parts, *CLIP, "data.micro_batch_size=1")))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_two_ranks_have_the_gradient_of_one_process(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, parts: tuple[str, ...], strategy: str
) -> None:
    one = gradients(compose(*parts, *CLIP))
    two = on_ranks(compose(*parts, *CLIP, f"trainer={strategy}", "trainer.precision=32-true"), 2, tmp_path)
    assert_equal(one, two)
