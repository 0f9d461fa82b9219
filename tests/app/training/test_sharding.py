"""The gradient of a step does not depend on how its rows are cut into micro-batches or shared among
ranks, nor on who holds which expert; neither do its norm and what clipping makes of it.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from app.config.build import build_module
from app.training.checkpoints import read_checkpoint
from experts.grouped.device import is_native
from tests.conftest import ROOT
from tests.support.ranks import each, fork
from tests.support.sharded import (
    CLIP,
    EVEN,
    ROWS,
    VOCAB,
    Gradients,
    as_run,
    bare_trainer,
    go_on,
    gradients,
    ragged_batch,
)

PARTS = {
    "topk": ("balance=none",),
    "sequence aux, bias": (
        "balance=[aux,loss_free]",
        "balance.aux.scope=sequence",
        "router/weigh=sigmoid",
    ),
    "gru": ("router=gru", "balance=none"),
    "coarse": ("experts=coarse", "balance=none"),
    "cosine": ("router=cosine", "balance=none"),
}
SHARDED = {
    "topk": (*EVEN, "balance=none"),
    "deepseek v3, clipped": (
        *EVEN,
        "router=deepseek_v3",
        "router.select.groups=4",
        "router.select.limit=2",
        "balance=[loss_free,seq_v3]",
        "trainer.gradient_clip_val=0.1",
    ),
    "gru, clipped": (*EVEN, "router=gru", "balance=none", "trainer.gradient_clip_val=0.1"),
    "top_p": (*EVEN, "router=top_p", "balance=none"),
    "two ranks' experts idle": (*EVEN, "balance=loss_free", "+callbacks.starve=6"),
    "grove": ("experts=grove", "balance=none"),
    "biases": (
        *EVEN,
        "experts/activation=clamped_swiglu",
        "experts.activation.bias=true",
        "balance=none",
    ),
    "longcat, recomputed": (
        "experts=longcat",
        "balance=none",
        "model.activation_checkpointing=true",
    ),
}
# all others that have stacks
LAYOUTS = {
    "heterogeneous": (
        "experts=heterogeneous",
        "experts.hidden_dims=[8,8,8,8,16,16,16,16]",
        "balance=none",
    ),
    "latent": ("experts=latent", "experts.shared_dim=16", "balance=none"),
    "moepp": ("experts=moepp", "router=moepp"),
    "residual": ("experts=residual", "balance=none"),
    "shared_gated": ("experts=shared_gated", "balance=none"),
    "relu": (*EVEN, "router=relu"),
    "top_p, clipped": (*EVEN, "router=top_p", "trainer.gradient_clip_val=0.1"),
}


def on_ranks(config: dict[str, Any], ranks: int, folder: Path) -> Gradients:
    """The same on several processes, as rank 0 sees it."""

    def work(rank: int) -> None:
        found = gradients(config, rank, ranks)
        if rank == 0:
            torch.save(found, folder / "gradients.pt")

    fork(work, ranks)
    return torch.load(folder / "gradients.pt", weights_only=True)


def assert_equal(one: Gradients, two: Gradients, rounding: float = 1e-9) -> None:
    """Every parameter's own gradient: a router's small one does
    not hide behind that of the embedding.
    """
    for name, value in one.items():
        assert (value - two[name]).norm() <= 1e-4 * value.norm() + rounding, name
    assert sum(bool(value.any()) for value in one.values()) > len(one) / 2


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_accumulated_micro_batches_have_the_gradient_of_one_batch(
    compose: Callable[..., dict[str, Any]], parts: tuple[str, ...]
) -> None:
    one = gradients(compose(*parts, *CLIP, f"data.micro_batch_size={ROWS}"))
    assert_equal(one, gradients(compose(*parts, *CLIP, "data.micro_batch_size=1")))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_two_ranks_have_the_gradient_of_one_process(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, parts: tuple[str, ...], strategy: str
) -> None:
    one = gradients(compose(*parts, *CLIP))
    two = on_ranks(
        compose(*parts, *CLIP, f"trainer={strategy}", "trainer.precision=32-true"), 2, tmp_path
    )
    assert_equal(one, two)


def test_four_sharded_ranks_have_the_gradient_of_one_process(
    compose: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    parts = (*CLIP, *SHARDED["deepseek v3, clipped"])
    four = compose(*parts, "trainer=fsdp", "trainer.devices=4", "trainer.precision=32-true")
    assert_equal(gradients(compose(*parts)), on_ranks(four, 4, tmp_path))


@pytest.mark.parametrize(("ranks", "ep_size"), [(2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("parts", SHARDED.values(), ids=SHARDED)
def test_experts_sharded_over_ranks_have_the_gradient_of_one_process(
    compose: Callable[..., dict[str, Any]],
    tmp_path: Path,
    parts: tuple[str, ...],
    ranks: int,
    ep_size: int,
) -> None:
    sharded = (
        "trainer=ep",
        f"trainer.devices={ranks}",
        f"trainer.ep_size={ep_size}",
        "trainer.precision=32-true",
    )
    assert_equal(
        gradients(compose(*CLIP, *parts)),
        on_ranks(compose(*CLIP, *parts, *sharded), ranks, tmp_path),
    )


@pytest.mark.parametrize("parts", LAYOUTS.values(), ids=LAYOUTS)
def test_the_experts_of_every_layout_can_be_sharded(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, parts: tuple[str, ...]
) -> None:
    sharded = ("trainer=ep", "trainer.devices=4", "trainer.ep_size=2", "trainer.precision=32-true")
    assert_equal(
        gradients(compose(*CLIP, *parts)), on_ranks(compose(*CLIP, *parts, *sharded), 4, tmp_path)
    )


# every preset of a router
ZOO = yaml.safe_load((ROOT / "conf/race/zoo.yaml").read_text())["contestants"]


@pytest.mark.nightly
@pytest.mark.parametrize("where", [("fsdp", 1), ("ep", 2)], ids=["fsdp", "ep"])
@pytest.mark.parametrize("name", [name for name in ZOO if "dense" not in name])
def test_every_router_has_the_gradient_of_one_process_on_four_ranks(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, name: str, where: tuple[str, int]
) -> None:
    strategy, ep_size = where
    own = any(word.startswith("experts=") for word in ZOO[name])
    parts = (*CLIP, *(() if own else ("experts=coarse", "experts.num_experts=16")), *ZOO[name])
    sharded = (
        f"trainer={strategy}",
        "trainer.devices=4",
        f"trainer.ep_size={ep_size}",
        "trainer.precision=32-true",
    )
    assert_equal(gradients(compose(*parts)), on_ranks(compose(*parts, *sharded), 4, tmp_path))


CHANGES = {
    "ep to one": (("ep", 2, 2), ("cpu", 1, 1)),
    "parts of ep to one": (("ep", 2, 2, "sharded"), ("cpu", 1, 1)),
    "parts of ep of 4, written meanwhile, to ep of 2": (("ep", 4, 2, "async"), ("ep", 2, 2)),
    "one to ep": (("cpu", 1, 1), ("ep", 2, 2)),
    "ep to ddp": (("ep", 2, 2), ("ddp", 2, 1)),
    "ddp to fsdp": (("ddp", 2, 1), ("fsdp", 2, 1)),
    "ep of 4 to ep of 2": (("ep", 4, 2), ("ep", 2, 2)),
}


@pytest.mark.nightly
@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_goes_on_under_another_strategy(
    compose: Callable[..., dict[str, Any]],
    tmp_path: Path,
    before: tuple[Any, ...],
    after: tuple[Any, ...],
) -> None:
    def on(place: tuple[Any, ...], steps: int, start: Path | None, end: Path) -> None:
        strategy, ranks, ep_size, written = (*place, "file")[:4]
        # or Adam would blow up rounding
        parts = (
            *CLIP,
            *EVEN,
            "balance=loss_free",
            "optimizer=adamw",
            "optimizer.eps=0.01",
        )
        where = (f"trainer={strategy}", f"trainer.devices={ranks}", f"trainer.ep_size={ep_size}")
        config = compose(
            *parts, *where, "trainer.precision=32-true", f"trainer.checkpoint_format={written}"
        )
        if ranks == 1:
            go_on(config, steps, start, end)
        else:
            fork(lambda rank: go_on(config, steps, start, end, rank, ranks), ranks)

    half, resumed, straight = (
        tmp_path / name for name in ("half.ckpt", "resumed.ckpt", "straight.ckpt")
    )
    on(before, 2, None, half)
    on(after, 3, half, resumed)
    on(("cpu", 1, 1), 3, None, straight)
    start, one, two = (read_checkpoint(p)["state_dict"] for p in (half, straight, resumed))
    assert one.keys() == two.keys()
    trained = [name for name, value in one.items() if value.is_floating_point()]
    moves = ({n: end[n] - start[n] for n in trained} for end in (one, two))
    assert_equal(*moves, rounding=1e-6)  # that of weights of 1


def held(config: dict[str, Any], rank: int, ranks: int) -> dict[str, int]:
    """Bytes of parameters, optimizer state and experts that this rank holds after a step,
    and of gradients before.
    """
    trainer = bare_trainer(config, ranks, 1)
    module = as_run(config, trainer)
    gradients = []
    step = module._optimizer_step
    module._optimizer_step = lambda norm: (
        gradients.extend(p.grad for p in module.parameters()) or step(norm)
    )
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    trainer.fit(module, DataLoader([batch], batch_size=None))
    state = [
        v for values in trainer.optimizers[0].state.values() for v in values.values() if v.dim()
    ]
    parameters = dict(module.named_parameters())
    experts = [value for name, value in parameters.items() if ".routed." in name]
    held = {
        "parameters": parameters.values(),
        "optimizer": state,
        "experts": experts,
        "gradients": gradients,
    }
    return {name: size(values) for name, values in held.items()}


def size(values: Iterable[Tensor]) -> int:
    return sum(
        (v.to_local() if isinstance(v, DTensor) else v).numel() * v.element_size() for v in values
    )


@pytest.mark.parametrize(
    ("strategy", "ranks", "ep_size", "experts"),
    [("fsdp", 2, 1, 2), ("ep", 2, 2, 2), ("ep", 4, 4, 4)],
)
def test_every_rank_holds_its_share_of_the_bytes(
    compose: Callable[..., dict[str, Any]],
    tmp_path: Path,
    strategy: str,
    ranks: int,
    ep_size: int,
    experts: int,
) -> None:
    parts = (*CLIP, *EVEN, "trainer.precision=32-true")
    sharded = compose(
        *parts, f"trainer={strategy}", f"trainer.devices={ranks}", f"trainer.ep_size={ep_size}"
    )
    whole_run = held(compose(*parts), 0, 1)
    fork(lambda rank: torch.save(held(sharded, rank, ranks), tmp_path / f"{rank}"), ranks)
    for rank in range(ranks):
        mine = torch.load(tmp_path / f"{rank}")
        assert mine["experts"] * experts == whole_run["experts"]
        for what in ("parameters", "optimizer", "gradients"):
            assert mine[what] == pytest.approx(whole_run[what] / ranks, rel=0.05)


@pytest.mark.parametrize(("strategy", "ep_size"), [("fsdp", 1), ("ep", 2)])
def test_gradients_kept_whole_until_the_last_micro_batch_are_those_of_one_process(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, strategy: str, ep_size: int
) -> None:
    parts = (*CLIP, *EVEN, "balance=none", "trainer.precision=32-true")
    sharded = compose(
        *parts, f"trainer={strategy}", f"trainer.ep_size={ep_size}", "trainer.accumulate=whole"
    )
    assert_equal(gradients(compose(*parts)), on_ranks(sharded, 2, tmp_path))
    assert each(lambda rank: reduced(sharded, rank), 2, tmp_path)[0] == 0
    assert (
        each(
            lambda rank: reduced(
                sharded | {"trainer": sharded["trainer"] | {"accumulate": "sharded"}}, rank
            ),
            2,
            tmp_path,
        )[0]
        > 5
    )


def reduced(config: dict[str, Any], rank: int) -> int:
    """How many parameters of the blocks have a gradient, which is reduced,
    before the last micro-batch of a step.
    """
    module = build_module(config, VOCAB, ["text"], 1)
    counts: list[int] = []
    module.routing_hooks.append(
        lambda *_: counts.append(sum(p.grad is not None for p in module.model.blocks.parameters()))
    )
    batch = {name: value[rank::2] for name, value in ragged_batch().items()}
    bare_trainer(config, 2, 1).fit(module, DataLoader([batch], batch_size=None))
    return counts[-1]


BF16 = (*CLIP, *EVEN, "trainer.precision=bf16-mixed", "balance=none")
SPLIT = [("fsdp", 1), ("ep", 2)]


@pytest.mark.parametrize(("strategy", "ep_size"), SPLIT)
def test_ranks_that_gather_in_bfloat16_have_the_gradient_of_one_process(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, strategy: str, ep_size: int
) -> None:
    one = gradients(compose(*BF16))
    two = on_ranks(compose(*BF16, f"trainer={strategy}", f"trainer.ep_size={ep_size}"), 2, tmp_path)
    for name, value in one.items():
        assert (value - two[name]).norm() <= 0.03 * value.norm(), name


def gathered(config: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """Bytes of copies of matrices that wait for the backward pass,
    and the dtypes that parameters are gathered in.
    """
    module = build_module(config, VOCAB, ["text"], config["data"]["micro_batch_size"])
    watched = {
        name: p
        for name, p in module.model.blocks.named_parameters()
        if "qkv" in name or p.dim() == 3
    }
    shapes = {
        tuple(sorted(p.shape))
        for p in watched.values()
        if p.dim() == 2 or is_native(torch.bfloat16)
    }
    dtypes: dict[str, str] = {}
    kept: list[Tensor] = []

    def note(part: Any, inputs: Any, output: Any, name: str) -> None:
        dtypes.update(
            {f"{name}.{own}": str(p.dtype) for own, p in part.named_parameters(recurse=False)}
        )

    for name, part in module.model.blocks[0].named_modules():
        part.register_forward_hook(partial(note, name=name))
    forward = module._forward
    alive = []

    def watching(batch: dict[str, Tensor], micro: int) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            result = forward(batch, micro)
        memory = (t.untyped_storage() for t in kept if tuple(sorted(t.shape)) in shapes)
        alive.append(sum({storage._cdata: storage.nbytes() for storage in memory}.values()))
        return result

    module._forward = watching  # type: ignore[method-assign]
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    bare_trainer(config, ranks, 1).fit(module, DataLoader([batch], batch_size=None))
    return {"alive": alive[0], "dtypes": dtypes}


@pytest.mark.parametrize(("strategy", "ep_size"), SPLIT)
def test_no_gathered_matrix_waits_for_the_backward_pass_and_routers_stay_float32(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, strategy: str, ep_size: int
) -> None:
    config = compose(*BF16, f"trainer={strategy}", f"trainer.ep_size={ep_size}")
    for found in each(lambda rank: gathered(config, rank, 2), 2, tmp_path):
        assert found["alive"] == 0
        low = {name for name, dtype in found["dtypes"].items() if dtype == "torch.bfloat16"}
        assert low == {f"attention.{n}.weight" for n in ("qkv", "out")} | {
            f"ffn.experts.{n}"
            for n in ("routed.w_in", "routed.w_out", "common.w_in.weight", "common.w_out.weight")
        }
