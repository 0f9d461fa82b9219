"""On a GPU: the same as on the CPU, without waiting for the device.
`make test-gpu`; skipped where there is none.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from app.config.build import build_module
from app.model.documents import attend, block_mask, dense_mask
from app.registry import names
from app.training.checkpoints import read_checkpoint
from benchmarks.bare import Bare
from experts import grouped
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
Train = Callable[..., Path]
# the second and the fourth expert are idle, and rows are left over
ENDS = [7, 7, 300, 300, 410]
ROWS = 450
WAITS_NEVER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] in (9, 10)
ROUTERS = sorted(path.stem for path in (ROOT / "conf/router").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.cuda.set_sync_debug_mode("default")


def poison(*shape: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Leaves NaN in the memory that the next tensors of these sizes get."""
    blocks = [torch.full(shape, torch.nan, dtype=dtype, device="cuda") for _ in range(8)]
    del blocks


def by_expert(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """SwiGLU of rows x (R, D), expert by expert."""
    y = []
    start = 0
    for expert, end in enumerate(ENDS):
        gate, up = (x[start:end] @ w_in[expert]).chunk(2, -1)
        y.append((functional.silu(gate) * up) @ w_out[expert])
        start = end
    return torch.cat([*y, torch.zeros(len(x) - start, w_out.shape[2], dtype=x.dtype)])


@pytest.mark.parametrize(("dim", "width"), [(64, 32), (60, 33), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_equal_their_definition_and_nothing_undefined_is_left(
    dim: int, width: int, dtype: torch.dtype
) -> None:
    exact = [
        torch.randn(s, dtype=torch.float64) / 4
        for s in ((ROWS, dim), (5, dim, 2 * width), (5, width, dim))
    ]
    leaves = [t.requires_grad_() for t in exact]
    probe = torch.randn(ROWS, dim, dtype=torch.float64)
    expected = by_expert(*leaves)
    gradients = torch.autograd.grad((expected * probe).sum(), leaves)
    low = [t.detach().to("cuda", dtype).requires_grad_() for t in exact]
    for leaf in (*low, low[0].new_zeros(ROWS, 2 * width)):
        poison(*leaf.shape, dtype=dtype)
    y = grouped.swiglu(low[0], torch.tensor(ENDS, dtype=torch.int32, device="cuda"), *low[1:])
    found = torch.autograd.grad((y * probe.to("cuda", dtype)).sum(), low)
    for ours, theirs in zip((y, *found), (expected, *gradients), strict=True):
        assert (ours.double().cpu() - theirs).norm() < (
            2e-2 if dtype == torch.bfloat16 else 2e-3
        ) * theirs.norm()
    assert y[ENDS[-1] :].eq(0).all() and found[0][ENDS[-1] :].eq(0).all()
    assert all(gradient[expert].eq(0).all() for gradient in found[1:] for expert in (1, 3))


@pytest.mark.parametrize(("inner", "outer"), [(64, 32), (31, 6)])
def test_a_grouped_product_equals_its_definition(inner: int, outer: int) -> None:
    x = torch.randn(ROWS, inner, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(5, inner, outer, device="cuda", dtype=torch.bfloat16).requires_grad_()
    poison(ROWS, outer)
    y = grouped.product(x, torch.tensor(ENDS, dtype=torch.int32, device="cuda"), weight)
    parts = [
        x[start:end] @ weight[e]
        for e, (start, end) in enumerate(zip([0, *ENDS], ENDS, strict=False))
    ]
    expected = torch.cat([*parts, y.new_zeros(ROWS - ENDS[-1], outer)])
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    probe = torch.randn_like(y)
    for ours, theirs in zip(
        *(torch.autograd.grad((z * probe).sum(), [x, weight]) for z in (y, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 3e-2)])
def test_attention_by_blocks_equals_attention_by_a_mask(
    groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    document = (torch.arange(300) // torch.tensor([[37], [300], [128]])).cuda()
    inputs = [
        torch.randn(3, heads, 300, 16, device="cuda", dtype=dtype).requires_grad_()
        for heads in (2, groups, groups)
    ]
    probe = torch.randn(3, 2, 300, 16, device="cuda", dtype=dtype)
    results = []
    for mask in (block_mask(document), dense_mask(document)):
        y = attend(*inputs, mask)
        results.append((y, *torch.autograd.grad((y * probe).sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def losses(config: dict[str, Any], device: str, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step in float32, on a batch with two documents and padding."""
    torch.manual_seed(0)
    module = build_module(config, 64, ["text"], 4)
    tokens = torch.randint(0, 64, (4, 33))
    valid = torch.ones(4, 32, dtype=torch.bool)
    valid[2, 20:] = False
    targets = tokens[:, 1:].masked_fill(~valid, -100)
    document = (torch.arange(32) >= 11).long().expand(4, 32).contiguous()
    model = module.to(device).model
    inputs = (t.to(device) for t in (tokens[:, :-1], targets, valid, document))
    nll, routings = model(*inputs, seed, 1, torch.zeros(4, 32, dtype=torch.int64, device=device))
    loss = nll.sum() + sum(
        weight * raw for raw, weight in model.balancer.losses(routings, None).values()
    )
    loss.backward()
    return loss.detach().cpu(), {
        n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize(
    "parts", [f"router={r}" for r in ROUTERS] + [f"experts={e}" for e in names("experts")]
)
def test_every_router_and_layout_trains(compose: Callable[..., dict[str, Any]], parts: str) -> None:
    """Those without noise equal the CPU."""
    config = compose(parts, "allow_non_causal=true")
    there, gradients = losses(config, "cuda")
    assert there.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())
    here, expected = losses(config, "cpu")
    if torch.equal(losses(config, "cpu", seed=1)[0], here):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-2)
        for name, gradient in gradients.items():
            assert (gradient - expected[name]).norm() <= 2e-2 * expected[name].norm() + 1e-3, name


@pytest.mark.skipif(
    not WAITS_NEVER, reason="torch multiplies in groups without a host read on sm90 and sm100 only"
)
@pytest.mark.parametrize(
    "parts", ["router=topk", "router=gru", "router=deepseek_v3", "experts=latent", "optimizer=muon"]
)
def test_a_step_never_waits_for_the_device(text: Path, parts: str) -> None:
    source = [
        "data=text",
        f"data.path={text}",
        f"data.cache_dir={text.parent}/cache",
        "tokenizer=bytes",
    ]
    bare = Bare([*source, "model=nano", "data.seq_len=128", parts], "cuda")
    batches = bare.batches()
    for _ in range(3):
        bare.train_step(next(batches))
    batch = next(batches)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    loss = bare.train_step(batch)
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.parametrize(
    "parts", [(), ("compile=true",), ("trainer.precision=bf16-mixed", "optimizer=muon")]
)
def test_train_py_trains_and_goes_on(train: Train, parts: tuple[str, ...]) -> None:
    parts = (*parts, "trainer=gpu", "schedule.total_steps=4")
    train(*parts, "trainer.max_steps=2", name="resumed")
    train(*parts, "trainer.max_steps=4", "resume=true", name="resumed")
    train(*parts, "trainer.max_steps=4", name="straight")
    one, two = (
        torch.load(f"runs/{name}/checkpoints/step_4.ckpt", weights_only=True)
        for name in ("resumed", "straight")
    )
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(value, two["state_dict"][name], rtol=1e-3, atol=1e-4, msg=name)


PLACES = (
    "ddp",
    "fsdp",
    "ep trainer.ep_size=1",
    "fsdp trainer.checkpoint_format=sharded",
    "ep trainer.ep_size=1 trainer.checkpoint_format=async",
)


@pytest.mark.parametrize("place", PLACES)
def test_every_strategy_trains_on_one_device_and_goes_on_without_it(
    train: Train, place: str
) -> None:
    words = ("trainer.devices=1", "schedule.total_steps=3", "optimizer.eps=0.01")
    train(
        f"trainer={place.split()[0]}", *place.split()[1:], *words, "trainer.max_steps=2", name="cut"
    )
    train("trainer=gpu", *words, "trainer.max_steps=3", "resume=true", name="cut")
    train("trainer=gpu", *words, "trainer.max_steps=3", name="straight")
    assert_close("cut", "straight", 3)


def test_a_run_goes_on_from_cpu_to_gpu_to_cpu(train: Train) -> None:
    words = ("schedule.total_steps=6", "optimizer.eps=0.01")
    for steps, trainer in ((2, "cpu"), (4, "gpu"), (6, "cpu")):
        train(
            *words, f"trainer={trainer}", f"trainer.max_steps={steps}", "resume=true", name="moved"
        )
    train(*words, "trainer=cpu", "trainer.max_steps=6", name="straight")
    assert_close("moved", "straight", 6)


def assert_close(one: str, two: str, step: int) -> None:
    ends = (
        read_checkpoint(Path(f"runs/{name}/checkpoints/step_{step}.ckpt"))["state_dict"]
        for name in (one, two)
    )
    there, here = ends
    assert there.keys() == here.keys()
    for name, value in there.items():
        torch.testing.assert_close(value, here[name], rtol=1e-2, atol=1e-3, msg=name)
