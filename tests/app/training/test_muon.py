"""Muon against its definition, torch's own, and itself on several ranks and after a resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from app.config.build import build_module
from app.training.optimizers.muon import Muon, on_ranks, orthogonal, orthogonal_blocks
from app.training.sharding import full_tensor
from tests.app.training.ranks import each
from tests.app.training.test_sharding import CLIP, VOCAB
from tests.app.training.test_step import trained

Compose = Callable[..., dict[str, Any]]
KNOBS: dict[str, Any] = {
    "lr": 0.1, "momentum": 0.9, "steps": 5, "block": None, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps as a processor without bfloat16 makes them; bfloat16 rounds the singular values to a hundredth."""
    torch.manual_seed(0)
    monkeypatch.setattr("app.training.optimizers.muon.is_native", lambda dtype: False)


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
    assert not orthogonal(stack, 5)[1].any(), "an expert without a gradient so far stays where it is"


def test_a_matrix_moves_as_the_formula_says_and_as_with_the_muon_of_torch() -> None:
    ours, theirs = (torch.linspace(-1, 1, 40 * 64).view(40, 64).requires_grad_() for _ in range(2))
    start = ours.detach().clone()
    by_formula, momentum = start.double(), torch.zeros(40, 64, dtype=torch.float64)
    optimizer = Muon([{"params": [ours], "hidden": True, "axis": None}], **KNOBS)
    other = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
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
    assert torch.cosine_similarity(moved, expected, 0) > 0.97  # theirs starts from the Frobenius norm, in bfloat16
    assert moved.norm() / expected.norm() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize(("block", "sizes"), [(10, [10, 10]), (8, [7, 7, 6]), (20, [20]), (None, [20])])
def test_a_block_moves_as_a_matrix_of_its_own(axis: int, block: int | None, sizes: list[int]) -> None:
    whole = torch.randn(3, 20, 8) if axis == -2 else torch.randn(3, 8, 20)
    gradient = torch.randn_like(whole)
    matrix = torch.nn.Parameter(whole.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in whole.split(sizes, axis)]
    matrix.grad = gradient
    for part, its in zip(parts, gradient.split(sizes, axis), strict=True):
        part.grad = its.clone()
    Muon([{"params": [matrix], "hidden": True, "axis": axis}], **{**KNOBS, "block": block}).step()
    Muon([{"params": parts, "hidden": True, "axis": None}], **KNOBS).step()
    torch.testing.assert_close(matrix, torch.cat(parts, axis))


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


def test_experts_attention_and_shared_parts_take_muon_and_nothing_else_does(compose: Compose) -> None:
    parts = ("optimizer=muon", "experts=deepseek", "router.lr_factor=0.5", "model.num_kv_heads=1")
    module = build_module(compose(*parts), VOCAB, ["text"], 4)
    (optimizer,), _ = module.configure_optimizers()
    groups = {p: g for g in optimizer.param_groups for p in g["params"]}
    blocks = [(n.split(".", 2)[2], p) for n, p in module.model.blocks.named_parameters(prefix="blocks")]
    inside = {name: (p.size(groups[p]["axis"]), p.numel()) for name, p in blocks if groups[p]["hidden"]}
    dim, heads, width = 32, 2 * 16, 16
    assert inside == {
        "attention.qkv.weight": (2 * heads, dim * 2 * heads), "attention.out.weight": (heads, dim * heads),
        "ffn.experts.routed.w_in": (2 * width, 16 * dim * 2 * width),
        "ffn.experts.routed.w_out": (width, 16 * dim * width),
        "ffn.experts.common.w_in.weight": (4 * width, dim * 4 * width),
        "ffn.experts.common.w_out.weight": (2 * width, dim * 2 * width),
    }  # fmt: skip
    assert not groups[module.model.embedding.weight]["hidden"] and not groups[module.model.head.weight]["hidden"]
    router = next(g for g in optimizer.param_groups if module.model.router_parameters()[0] in {*g["params"]})
    other = next(g for g in optimizer.param_groups if module.model.embedding.weight in {*g["params"]})
    assert router["initial_lr"] == 0.5 * other["initial_lr"]


def weights(config: dict[str, Any], rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Of a model after two steps."""
    module, _ = trained(config, rank, ranks)
    return {name: full_tensor(value.detach()).clone() for name, value in module.model.named_parameters()}


@pytest.mark.parametrize(("trainer", "block"), [("ddp", 128), ("fsdp2", 128), ("fsdp2", 8), ("fsdp2", 12), ("ep", 8)])
def test_two_ranks_step_as_one_process_does(compose: Compose, tmp_path: Path, trainer: str, block: int) -> None:
    parts = (*CLIP, "optimizer=muon", "optimizer.lr=0.05", "optimizer.eps=1e-3", "schedule.warmup_steps=0")
    parts = (*parts, f"optimizer.block={block}")
    one = weights(compose(*parts))
    for other in each(lambda rank: weights(compose(*parts, f"trainer={trainer}"), rank, 2), 2, tmp_path):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("axis", "block", "own"), [(-2, 8, (24, 16)), (-1, 8, (48, 8)), (-2, 16, (48, 16)), (-2, 20, (48, 16))]
)
def test_ranks_share_the_blocks_of_a_matrix_out(tmp_path: Path, axis: int, block: int, own: tuple[int, int]) -> None:
    x = torch.randn(48, 16)

    def work(rank: int) -> tuple[Tensor, list[int]]:
        seen: list[int] = []
        distributed.init_process_group("gloo", rank=rank, world_size=2)

        def update(part: Tensor) -> Tensor:
            seen.extend(part.shape)
            return orthogonal_blocks(part, axis, block, 3)

        split = distribute_tensor(x, init_device_mesh("cpu", (2,)), [Shard(0)])
        return full_tensor(on_ranks(update, split, axis, block)), seen

    for found, seen in each(work, 2, tmp_path):
        assert tuple(seen) == own, "three blocks are not shared out between two ranks, they are made on both"
        torch.testing.assert_close(found, orthogonal_blocks(x, axis, block, 3))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.momentum=1", "optimizer.momentum=1.0: must be at least 0 and below 1"),
        ("optimizer.block=0", "optimizer.block=0: must be at least 1, or null"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be two numbers"),
        ("optimizer.name=moun", "optimizer=moun: unknown; did you mean 'muon'?"),
        ("+optimizer.nesterov=true", "optimizer.nesterov=True: unknown"),
    ],
)
def test_a_mistake_ends_in_one_line(compose: Compose, override: str, line: str) -> None:
    from app.config.build import build_optimizer
    from app.registry import UserError

    with pytest.raises(UserError) as caught:
        build_optimizer(compose("optimizer=muon", override))
    assert line in str(caught.value)
