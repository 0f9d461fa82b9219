"""How often a step waits: for the other ranks, and on the host for the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from app.config.build import build_callbacks, build_module, build_trainer_config
from app.training.trainer import make_trainer
from tests.support.ranks import each
from tests.support.sharded import VOCAB, ragged_batch

Compose = Callable[..., dict[str, Any]]
STEPS = 7
LOGGED = 3
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_object",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "reduce",
)
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__")


class Counter(lightning.Callback):
    """Counts the calls of some functions in every step, with the callbacks before and after it."""

    def __init__(self, owner: Any, names: tuple[str, ...]) -> None:
        self.count = 0
        self.steps = []
        self.kept = {name: getattr(owner, name) for name in names}
        for name, function in self.kept.items():
            setattr(owner, name, self.counted(function))

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return call

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(self.count)
        self.count = 0


def steps(
    config: dict[str, Any],
    folder: Path,
    owner: Any,
    names: tuple[str, ...],
    rank: int = 0,
    ranks: int = 1,
):
    """The counts of the steps that do not log, after the first."""
    module = build_module(config, VOCAB, ["text"], 2)
    counter = Counter(owner, names)
    try:
        trainer = make_trainer(
            build_trainer_config(config), folder, [], [*build_callbacks(config), counter]
        )
        # behind all others
        trainer.callbacks.append(trainer.callbacks.pop(trainer.callbacks.index(counter)))
        batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
        trainer.fit(module, *(DataLoader([batch] * n, batch_size=None) for n in (STEPS, 1)))
    finally:
        for name, function in counter.kept.items():
            setattr(owner, name, function)
    return [count for step, count in enumerate(counter.steps[1:-1], 1) if (step + 1) % LOGGED]


def parts(*more: str) -> tuple[str, ...]:
    own = (
        "callbacks=brief",
        "callbacks.samples=null",
        "callbacks.domain_pictures=null",
        "trainer.val_every=100",
    )
    every = (
        f"trainer.log_every={LOGGED}",
        f"callbacks.progress.every={LOGGED}",
        f"trainer.max_steps={STEPS}",
    )
    return (*own, *every, *more)


@pytest.mark.parametrize(
    ("balance", "expected"), [("aux", 1), ("[aux,z_loss]", 1), ("loss_free", 2), ("none", 1)]
)
def test_ranks_wait_for_each_other_once_a_step_and_once_more_for_a_controller(
    compose: Compose, tmp_path: Path, balance: str, expected: int
) -> None:
    config = compose(*parts("trainer=ddp", f"balance={balance}"))
    for counts in each(
        lambda rank: steps(config, tmp_path, torch.distributed, COLLECTIVES, rank, 2), 2, tmp_path
    ):
        assert counts == [expected] * 3


def test_the_host_looks_at_the_device_once_a_step(compose: Compose, tmp_path: Path) -> None:
    """Whether the gradient is finite; what the experts ask on a CPU costs nothing,
    and they do not ask on CUDA.
    """
    config = compose(*parts("experts=dense", "balance=none"))
    assert steps(config, tmp_path, torch.Tensor, READS) == [1] * 3
