"""A checkpoint of any strategy, on any number of ranks, as a file or in parts,
goes on under any other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from app.training.sharding import full_tensor
from tests.support.ranks import fork
from tests.support.sharded import CLIP, EVEN, as_run, bare_trainer, go_on, ragged_batch

pytestmark = pytest.mark.nightly

Gradients = dict[str, Tensor]
PLACES = {  # strategy, ranks, ep_size
    "one": ("cpu", 1, 1),
    "ddp 2": ("ddp", 2, 1),
    "fsdp 2": ("fsdp", 2, 1),
    "fsdp 4": ("fsdp", 4, 1),
    "ep 2, 2": ("ep", 2, 2),
    "ep 4, 2": ("ep", 4, 2),
    "ep 4, 4": ("ep", 4, 4),
}
PARTS = (
    *CLIP,
    *EVEN,
    "balance=loss_free",
    "optimizer=adamw",
    "optimizer.eps=0.01",
    "trainer.precision=32-true",
)
# between the last expert that is chosen and the next one: rounding, which is 4e-7, chooses no other
MARGIN = 1e-5


def first_gradient(config: dict[str, Any], before: Path, rank: int, ranks: int) -> Gradients:
    """Of the first step after a checkpoint, and the smallest margin of a choice in it."""
    lightning.seed_everything(0, verbose=False)
    trainer = bare_trainer(config, ranks, 3)
    module = as_run(config, trainer)
    found: Gradients = {}
    margins: list[Tensor] = []

    def record(norm: Tensor) -> None:
        found.update(
            {
                name: full_tensor(p.grad).clone()
                for name, p in module.named_parameters()
                if p.grad is not None
            }
        )
        module.optimizers().zero_grad()
        module._count_step()

    def watch(routings: list[Any], batch: dict[str, Tensor]) -> None:
        offsets = module.model.balancer.offset()
        for routing, offset in zip(routings, offsets, strict=True):
            best = (
                (routing.scores + offset)[batch["valid"].flatten()].topk(routing.top_k + 1).values
            )
            margins.append((best[:, -2] - best[:, -1]).min())

    module._optimizer_step = record  # type: ignore[method-assign]
    module.routing_hooks.append(watch)
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    trainer.fit(
        module, DataLoader([batch] * 9, batch_size=None), ckpt_path=before, weights_only=True
    )
    return found | {"margin": torch.stack(margins).min()}


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], case: str
) -> None:
    for name, value in expected.items():
        assert (value - found[name]).norm() <= 1e-5 * value.norm() + 1e-9, f"{case}: {name}"


def test_the_first_gradient_after_any_change_of_place_is_that_of_one_process(
    compose: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def config(place: str, form: str = "file") -> dict[str, Any]:
        strategy, ranks, ep_size = PLACES[place]
        where = (f"trainer={strategy}", f"trainer.devices={ranks}", f"trainer.ep_size={ep_size}")
        return compose(*PARTS, *where, f"trainer.checkpoint_format={form}")

    def save(place: str, form: str) -> Path:
        (_, ranks, _), chosen = PLACES[place], config(place, form)
        path = tmp_path / f"{place} {form}.ckpt"
        fork(lambda rank: go_on(chosen, 2, None, path, rank, ranks), ranks)
        assert path.is_dir() == (form == "sharded")
        return path

    def resume(place: str) -> None:
        (_, ranks, _), chosen = PLACES[place], config(place)

        def work(rank: int) -> None:
            for path in saved:
                found = first_gradient(chosen, path, rank, ranks)
                if rank == 0:
                    torch.save(found, path.with_suffix(f".to {place}"))

        fork(work, ranks)

    split = [place for place, (strategy, *_) in PLACES.items() if strategy in ("fsdp", "ep")]
    saved = [save(place, "file") for place in PLACES] + [save(place, "sharded") for place in split]
    for place in PLACES:
        resume(place)
    for path in saved:
        ends = {
            place: torch.load(path.with_suffix(f".to {place}"), weights_only=True)
            for place in PLACES
        }
        assert ends["one"].pop("margin") > MARGIN
        for place, end in ends.items():
            assert_close(end, ends["one"], f"{path.stem} on {place}")
