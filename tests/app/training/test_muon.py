"""Muon against its definition, torch's own, and itself on several ranks and after a resume."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from app.config.build import build_module, build_optimizer
from app.training.optimizers import muon
from app.training.optimizers.blocks import Blocks, map_blocks, map_blocks_on_ranks
from app.training.optimizers.muon import Muon, orthogonal_update
from app.training.sharding import full_tensor
from tests.support.ranks import each
from tests.support.sharded import CLIP, VOCAB, trained

Compose = Callable[..., dict[str, Any]]
KNOBS: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "steps": 5,
    "block": None,
    "gate_up": "apart",
    "dtype": "float32",
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "weight_decay": 0.2,
}
# fields of a MatrixLayout: F = 20
GATE_UP = {"axis": -1, "sections": (20, 20), "unit": 1, "paired": True}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def orthogonal(x: Tensor, steps: int) -> Tensor:
    return muon.orthogonal(x, steps, torch.float32)


def hidden(matrix: Tensor, axis: int | None = None, **layout: Any) -> dict[str, Any]:
    """A parameter group of one hidden matrix;
    on the axis it has one section unless others are given.
    """
    fields = {"axis": axis}
    if axis is not None:
        fields |= {"sections": (matrix.size(axis),), "unit": 1, "paired": False} | layout
    return {"params": [matrix], "hidden": True, **fields}


def updated(matrix: Tensor, gradient: Tensor, group: dict[str, Any], **knobs: Any) -> Tensor:
    """Return the matrix after one step with a gradient, in a group with the given fields."""
    parameter = torch.nn.Parameter(matrix.clone())
    parameter.grad = gradient.clone()
    Muon([group | {"params": [parameter]}], **{**KNOBS, **knobs}).step()
    return parameter.detach()


def by_singular_values(x: Tensor) -> Tensor:
    """What the polynomial makes of each singular value, the vectors untouched."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.pow(8).sum() ** (1 / 8)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vh


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_only_the_singular_values_change_and_they_come_near_one(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    torch.testing.assert_close(orthogonal(x, 5).double(), by_singular_values(x), atol=2e-4, rtol=0)
    assert torch.linalg.svdvals(orthogonal(x, 5)).sub(1).abs().max() < 0.35


def test_every_expert_of_a_stack_is_made_orthogonal_by_itself() -> None:
    stack = torch.randn(3, 8, 12) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    torch.testing.assert_close(orthogonal(stack, 5), torch.stack([orthogonal(x, 5) for x in stack]))
    stack[1] = 0
    assert not orthogonal(stack, 5)[1].any(), (
        "an expert without a gradient so far stays where it is"
    )


def test_a_matrix_moves_as_the_formula_says_and_as_with_the_muon_of_torch() -> None:
    ours, theirs = (torch.linspace(-1, 1, 40 * 64).view(40, 64).requires_grad_() for _ in range(2))
    start = ours.detach().clone()
    by_formula = start.double()
    momentum = torch.zeros(40, 64, dtype=torch.float64)
    optimizer = Muon([hidden(ours)], **KNOBS)
    other = torch.optim.Muon(
        [theirs], lr=0.1, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        ours.grad = torch.randn(40, 64)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        other.step()
        momentum = 0.9 * momentum + 0.1 * theirs.grad
        update = 0.2 * 64**0.5 * by_singular_values(0.1 * theirs.grad + 0.9 * momentum)
        by_formula -= 0.1 * (0.2 * by_formula + update)
    torch.testing.assert_close(ours.double(), by_formula, atol=1e-4, rtol=0)
    moved, expected = ((x.detach() - start).flatten() for x in (ours, theirs))
    # theirs starts from the Frobenius norm, in bfloat16
    assert torch.cosine_similarity(moved, expected, 0) > 0.97
    assert moved.norm() / expected.norm() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize(
    ("block", "unit", "sizes"),
    [
        (10, 1, [10, 10]),
        (8, 1, [7, 7, 6]),
        (20, 1, [20]),
        (None, 1, [20]),
        (11, 5, [10, 10]),
        (3, 5, [5, 5, 5, 5]),
    ],
)
def test_a_block_moves_as_a_matrix_of_its_own(
    axis: int, block: int | None, unit: int, sizes: list[int]
) -> None:
    whole = torch.randn(3, 20, 8) if axis == -2 else torch.randn(3, 8, 20)
    gradient = torch.randn_like(whole)
    moved = updated(whole, gradient, hidden(whole, axis, unit=unit), block=block)
    pieces = zip(whole.split(sizes, axis), gradient.split(sizes, axis), strict=True)
    expected = [updated(part, its, hidden(part)) for part, its in pieces]
    torch.testing.assert_close(moved, torch.cat(expected, axis))


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("block", [8, 12, 20, 30, 64, 128, None])
@pytest.mark.parametrize("sections", [(20, 20), (24, 12, 12), (30,)])
def test_matrices_side_by_side_move_as_if_each_were_a_weight_of_its_own(
    axis: int, block: int | None, sections: tuple[int, ...]
) -> None:
    """No block crosses the boundary between gate and up, or between queries and keys,
    at any width.
    """
    whole = torch.randn(3, sum(sections), 8)
    whole = whole if axis == -2 else whole.mT.contiguous()
    gradient = torch.randn_like(whole)
    moved = updated(whole, gradient, hidden(whole, axis, sections=sections), block=block)
    pieces = zip(whole.split(sections, axis), gradient.split(sections, axis), strict=True)
    expected = [updated(part, its, hidden(part, axis), block=block) for part, its in pieces]
    torch.testing.assert_close(moved, torch.cat(expected, axis))


@pytest.mark.parametrize(
    ("block", "units"), [(20, [10, 10]), (14, [7, 7, 6]), (128, [20]), (None, [20])]
)
def test_together_a_block_is_the_gate_and_up_of_the_same_units(
    block: int | None, units: list[int]
) -> None:
    whole = torch.randn(3, 8, 40)
    gradient = torch.randn(3, 8, 40)
    moved = updated(whole, gradient, hidden(whole, **GATE_UP), block=block, gate_up="together")
    gate, up = moved.chunk(2, -1)
    start = 0
    for number in units:
        columns = [*range(start, start + number), *range(20 + start, 20 + start + number)]
        block_of = whole[..., columns]
        expected = updated(block_of, gradient[..., columns], hidden(block_of))
        found = torch.cat([gate[..., start : start + number], up[..., start : start + number]], -1)
        torch.testing.assert_close(found, expected)
        start += number


def test_the_gate_does_not_move_with_the_gradient_of_up_at_any_width() -> None:
    for width in (4, 20, 64, 65, 96, 128, 172):
        whole = torch.randn(8, 2 * width)
        gradient = torch.randn(8, 2 * width)
        other = gradient.clone()
        other[:, width:] = torch.randn(8, width)
        group = hidden(whole, -1, sections=(width, width), paired=True)
        moved, differently = (
            updated(whole, g, group, block=128)[:, :width] for g in (gradient, other)
        )
        torch.testing.assert_close(moved, differently, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rows", "columns"), [(40, 64), (96, 32), (96, 128), (128, 96), (96, 512), (256, 768)]
)
def test_the_norm_of_an_update_is_near_that_of_an_orthogonal_matrix(
    rows: int, columns: int
) -> None:
    """The singular values of a random matrix come to 0.9 to 1 on average;
    torch's five steps bring 0.8 to 0.96.
    """
    x = torch.randn(rows, columns)
    rank = min(rows, columns)
    assert 0.88 < orthogonal(x, 3).norm() / rank**0.5 < 1.02
    rms = orthogonal_update(x, 3, torch.float32).square().mean().sqrt()
    assert 0.88 * 0.2 < rms < 1.02 * 0.2, "that of AdamW's updates"
    theirs = torch.optim._muon._zeropower_via_newtonschulz(x, muon.COEFFICIENTS, 5, 1e-7)
    assert 0.95 < orthogonal(x, 3).norm() / theirs.float().norm() < 1.25


def test_what_is_not_hidden_moves_as_with_adamw() -> None:
    ours, theirs = (torch.linspace(-1, 1, 60).view(6, 10).requires_grad_() for _ in range(2))
    optimizer = Muon([{"params": [ours], "hidden": False, "axis": None}], **KNOBS)
    other = torch.optim.AdamW([theirs], 0.1, (0.9, 0.95), 1e-8, 0.2)
    for _ in range(3):
        ours.grad = torch.randn(6, 10)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def test_experts_attention_and_shared_parts_take_muon_and_nothing_else_does(
    compose: Compose,
) -> None:
    parts = (
        "optimizer=muon",
        "experts=deepseek",
        "optimizer.router_lr_factor=0.5",
        "model.num_kv_heads=1",
    )
    module = build_module(compose(*parts), VOCAB, ["text"], 4)
    (optimizer,), _ = module.configure_optimizers()
    groups = {p: g for g in optimizer.param_groups for p in g["params"]}
    blocks = [
        (n.split(".", 2)[2], p) for n, p in module.model.blocks.named_parameters(prefix="blocks")
    ]
    inside = {
        name: (p.size(group["axis"]), group["sections"], group["unit"])
        for name, p in blocks
        if (group := groups[p])["hidden"]
    }
    head = 16
    heads = 2 * 16
    width = 16
    assert inside == {
        "attention.qkv.weight": (2 * heads, (heads, head, head), head),
        "attention.out.weight": (heads, (heads,), head),
        "ffn.experts.routed.w_in": (2 * width, (width, width), 1),
        "ffn.experts.routed.w_out": (width, (width,), 1),
        "ffn.experts.common.w_in.weight": (4 * width, (2 * width, 2 * width), 1),
        "ffn.experts.common.w_out.weight": (2 * width, (2 * width,), 1),
    }
    assert (
        not groups[module.model.embedding.weight]["hidden"]
        and not groups[module.model.head.weight]["hidden"]
    )
    router = next(
        g for g in optimizer.param_groups if module.model.router_parameters()[0] in {*g["params"]}
    )
    other = next(
        g for g in optimizer.param_groups if module.model.embedding.weight in {*g["params"]}
    )
    assert router["initial_lr"] == 0.5 * other["initial_lr"]


def weights(config: dict[str, Any], rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Of a model after two steps."""
    module, _ = trained(config, rank, ranks)
    return {
        name: full_tensor(value.detach()).clone() for name, value in module.model.named_parameters()
    }


@pytest.mark.parametrize(
    ("trainer", "block"), [("ddp", 128), ("fsdp", 128), ("fsdp", 8), ("fsdp", 12), ("ep", 8)]
)
@pytest.mark.parametrize("gate_up", ["apart", "together"])
def test_two_ranks_step_as_one_process_does(
    compose: Compose, tmp_path: Path, trainer: str, block: int, gate_up: str
) -> None:
    parts = (
        *CLIP,
        "optimizer=muon",
        "optimizer.lr=0.05",
        "optimizer.eps=1e-3",
        "schedule.warmup_steps=0",
    )
    parts = (*parts, f"optimizer.block={block}", f"optimizer.gate_up={gate_up}", "experts=deepseek")
    one = weights(compose(*parts))
    for other in each(
        lambda rank: weights(compose(*parts, f"trainer={trainer}"), rank, 2), 2, tmp_path
    ):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


APART = (24, 24)


@pytest.mark.parametrize(
    ("blocks", "own"),
    [
        (Blocks(-2, 8), (24, 16)),
        (Blocks(-1, 8), (48, 8)),
        (Blocks(-2, 24, APART), (24, 16)),
        # a block of 16 and, on both ranks, the blocks of 8
        (Blocks(-2, 24, (32, 8, 8), unit=8), (32, 16)),
        (Blocks(-2, 8, (32, 8, 8)), (24, 16)),
        (Blocks(-2, 16), (48, 16)),
        (Blocks(-2, 20), (48, 16)),
        (Blocks(-2, 24, APART, together=True), (24, 16)),
        (Blocks(-2, 48, APART, together=True), (48, 16)),
    ],
)
def test_ranks_share_the_blocks_of_a_matrix_out(
    tmp_path: Path, blocks: Blocks, own: tuple[int, int]
) -> None:
    x = torch.randn(48, 16)
    update = partial(orthogonal_update, steps=3, dtype=torch.float32)

    def work(rank: int) -> tuple[int, Tensor]:
        seen: list[int] = []
        distributed.init_process_group("gloo", rank=rank, world_size=2)

        def counted(part: Tensor) -> Tensor:
            seen.append(part.numel())
            return update(part)

        split = distribute_tensor(x, init_device_mesh("cpu", (2,)), [Shard(0)])
        y = full_tensor(map_blocks_on_ranks(counted, split, blocks))
        return sum(seen), y

    for numbers, found in each(work, 2, tmp_path):
        assert numbers == own[0] * own[1], (
            "three blocks are not shared out between two ranks: both make them"
        )
        torch.testing.assert_close(found, map_blocks(update, x, blocks))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.momentum=1", "optimizer.momentum=1.0: must be at least 0 and below 1"),
        ("optimizer.block=0", "optimizer.block=0: must be at least 1, or null"),
        ("optimizer.gate_up=apar", "optimizer.gate_up=apar: must be one of apart, together, null"),
        ("optimizer.dtype=half", "optimizer.dtype=half: must be one of float32, bfloat16"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be two numbers"),
        ("optimizer.name=moun", "optimizer=moun: unknown; did you mean 'muon'?"),
        ("+optimizer.nesterov=true", "optimizer.nesterov=True: unknown"),
    ],
)
def test_a_mistake_ends_in_one_line(compose: Compose, override: str, line: str) -> None:
    from app.registry import UserError

    with pytest.raises(UserError) as caught:
        build_optimizer(compose("optimizer=muon", override))
    assert line in str(caught.value)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        (["trainer.precision=32-true"], torch.float32),
        (["trainer.precision=bf16-mixed"], torch.bfloat16),
        (["trainer.precision=bf16-mixed", "optimizer.dtype=float32"], torch.float32),
        (["trainer.precision=auto"], None),
    ],
)
def test_the_dtype_follows_the_precision_of_the_run_and_not_the_cpu(
    compose: Compose,
    monkeypatch: pytest.MonkeyPatch,
    native: bool,
    overrides: list[str],
    dtype: torch.dtype | None,
) -> None:
    """A study fixes the precision, so that its runs are the same on every machine."""
    monkeypatch.setattr("app.training.trainer.is_native", lambda dtype: native)
    optimizer = build_optimizer(compose("optimizer=muon", *overrides))([torch.zeros(1)])
    assert isinstance(optimizer, Muon)
    assert optimizer.dtype == (dtype or (torch.bfloat16 if native else torch.float32))


@pytest.mark.parametrize(
    ("value", "rule"), [("apart", "apart"), ("together", "together"), ("null", None)]
)
def test_the_rule_for_gate_and_up_is_chosen_by_config(
    compose: Compose, value: str, rule: str | None
) -> None:
    optimizer = build_optimizer(compose("optimizer=muon", f"optimizer.gate_up={value}"))(
        [torch.zeros(1)]
    )
    assert isinstance(optimizer, Muon)
    assert optimizer.gate_up == rule


def test_without_a_rule_the_axis_is_cut_as_if_it_held_one_matrix() -> None:
    """The rule of runs that were saved before the option existed."""
    whole = torch.randn(3, 8, 40)
    gradient = torch.randn(3, 8, 40)
    moved = updated(whole, gradient, hidden(whole, **GATE_UP), block=16, gate_up=None)
    parts = zip(whole.split([14, 13, 13], -1), gradient.split([14, 13, 13], -1), strict=True)
    expected = [updated(part, its, hidden(part)) for part, its in parts]
    torch.testing.assert_close(moved, torch.cat(expected, -1))
