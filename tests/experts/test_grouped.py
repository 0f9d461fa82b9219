"""The grouped computation against its dense definition."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from experts import grouped
from experts.grouped.bmm import bmm_product, bmm_swiglu
from experts.grouped.grouped_mm import grouped_mm_product, grouped_mm_swiglu
from experts.grouped.planning import _padded

T = 40
D = 16
E = 5
K = 2
H = 8
CALL_ROWS = pytest.mark.parametrize("rows_per_product", [0, 100], ids=["unpadded", "padded"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fixed_k() -> tuple[Tensor, Tensor]:
    return torch.rand(T, E).topk(K).indices.flatten(), torch.arange(T).repeat_interleave(K)


def uneven() -> tuple[Tensor, Tensor]:
    """Tokens with any number of experts as in expert choice, some without one,
    some assignments unassigned.
    """
    return torch.randint(0, E + 1, (70,)), torch.randint(0, T - 3, (70,)).sort().values


def one_expert() -> tuple[Tensor, Tensor]:
    return torch.full((T,), 3), torch.arange(T)


def unassigned() -> tuple[Tensor, Tensor]:
    return torch.full((T,), E), torch.arange(T)


def no_assignment() -> tuple[Tensor, Tensor]:
    return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)


def leaves(num_assignments: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, gate, w_in, w_out."""
    shapes = ((T, D), (num_assignments,), (E, D, 2 * H), (E, H, D))
    return [torch.randn(shape, dtype=dtype).div_(2).requires_grad_() for shape in shapes]


def layer(
    expert: Tensor,
    token: Tensor,
    x: Tensor,
    gate: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    rows_per_product: int = 0,
):
    plan = grouped.plan(expert, token, len(w_in), len(x), rows_per_product)
    y = grouped.swiglu(grouped.dispatch(x, plan), plan.ends, w_in, w_out)
    return grouped.combine(y, gate, plan)


def dense(
    expert: Tensor, token: Tensor, x: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor
) -> Tensor:
    """Every expert on every token, weighted by a (T, E) matrix."""
    matrix = gate.new_zeros(len(x), len(w_in) + 1).index_put(
        (token, expert), gate, accumulate=True
    )[:, :-1]
    hidden, up = torch.einsum("td,edh->eth", x, w_in).chunk(2, -1)
    return torch.einsum("te,etf,efd->td", matrix, functional.silu(hidden) * up, w_out)


def with_gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (y.detach(), *torch.autograd.grad((y * weight).sum(), inputs))


@CALL_ROWS
@pytest.mark.parametrize("case", [fixed_k, uneven, one_expert, unassigned, no_assignment])
def test_output_and_all_gradients_equal_the_dense_definition(case, rows_per_product):
    expert, token = case()
    inputs = leaves(len(expert))
    ours = with_gradients(layer(expert, token, *inputs, rows_per_product), inputs)
    torch.testing.assert_close(ours, with_gradients(dense(expert, token, *inputs), inputs))


@CALL_ROWS
def test_gradients_equal_finite_differences(rows_per_product):
    expert, token = uneven()
    assert torch.autograd.gradcheck(
        lambda *inputs: layer(expert, token, *inputs, rows_per_product),
        leaves(len(expert)),
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "width"), [(9, 8), (16, 5), (6, 3)])
def test_widths_that_grouped_mm_does_not_take_are_padded(dtype, dim, width):
    ends = torch.tensor([7, 7, 20, 31, 33], dtype=torch.int32)
    shapes = ((T, dim), (E, dim, 2 * width), (E, width, dim), (E, dim, width))
    x, w_in, w_out, weight = (
        torch.randn(shape, dtype=dtype).div_(2).requires_grad_() for shape in shapes
    )
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for one, two, weights in (
        (bmm_swiglu, grouped_mm_swiglu, [w_in, w_out]),
        (bmm_product, grouped_mm_product, [weight]),
    ):
        results = [
            with_gradients(kernel(x, ends, *weights), [x, *weights]) for kernel in (one, two)
        ]
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_products_equal_grouped_mm_and_unassigned_rows_are_zero(dtype):
    ends = torch.tensor([7, 7, 20, 31, 33], dtype=torch.int32)  # 7 rows left over
    x, _, w_in, w_out = leaves(0, dtype)
    results = [
        with_gradients(swiglu(x, ends, w_in, w_out), [x, w_in, w_out])
        for swiglu in (bmm_swiglu, grouped_mm_swiglu)
    ]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    for y, grad_x, *_ in results:
        assert y[33:].eq(0).all() and grad_x[33:].eq(0).all()


@pytest.mark.parametrize("swiglu", [bmm_swiglu, grouped_mm_swiglu])
def test_what_stands_in_unassigned_rows_reaches_no_weight(swiglu):
    ends = torch.tensor([7, 7, 20, 31, 33], dtype=torch.int32)
    x, _, w_in, w_out = leaves(0, torch.bfloat16)
    before = with_gradients(swiglu(x, ends, w_in, w_out), [w_in, w_out])[1:]
    x.data[33:] = torch.nan
    torch.testing.assert_close(
        with_gradients(swiglu(x, ends, w_in, w_out), [w_in, w_out])[1:], before, rtol=0, atol=0
    )


@CALL_ROWS
def test_bfloat16_stays_close_to_float64(rows_per_product):
    expert, token = uneven()
    inputs = leaves(len(expert))
    low = [t.detach().bfloat16().requires_grad_() for t in inputs]
    reference = with_gradients(dense(expert, token, *inputs), inputs)
    for ours, exact in zip(
        with_gradients(layer(expert, token, *low, rows_per_product), low), reference, strict=True
    ):
        assert (ours - exact).norm() < 0.02 * exact.norm()


@CALL_ROWS
def test_the_result_is_bitwise_the_same_twice_and_under_deterministic_algorithms(rows_per_product):
    expert, token = uneven()
    inputs = leaves(len(expert), torch.float32)

    def run() -> tuple[Tensor, ...]:
        return with_gradients(layer(expert, token, *inputs, rows_per_product), inputs)

    first = run()
    second = run()
    torch.use_deterministic_algorithms(True)
    try:
        third = run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(
        torch.equal(a, b) and torch.equal(a, c)
        for a, b, c in zip(first, second, third, strict=True)
    )


def test_autocast_computes_in_its_dtype_and_gradients_keep_theirs():
    expert, token = fixed_k()
    inputs = leaves(len(expert), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(expert, token, *inputs)
    assert y.dtype == torch.bfloat16
    assert [grad.dtype for grad in with_gradients(y, inputs)[1:]] == [torch.float32] * 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(reentrant):
    expert, token = fixed_k()
    inputs = leaves(len(expert))
    checkpointed = checkpoint(
        lambda *leaf: layer(expert, token, *leaf), *inputs, use_reentrant=reentrant
    )
    checkpointed.sum().backward()
    plain = torch.autograd.grad(layer(expert, token, *inputs).sum(), inputs)
    torch.testing.assert_close(tuple(leaf.grad for leaf in inputs), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fixed_k_compiles_without_a_graph_break(dtype):
    expert, token = fixed_k()
    inputs = leaves(len(expert), dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ours = with_gradients(compiled(expert, token, *inputs), inputs)
    torch.testing.assert_close(ours, with_gradients(layer(expert, token, *inputs), inputs))


@CALL_ROWS
def test_the_unassigned_add_nothing_even_when_an_expert_copies_every_row(rows_per_product):
    expert, token = uneven()
    x, gate, *_ = leaves(len(expert))
    plan = grouped.plan(expert, token, E, T, rows_per_product)
    ours = with_gradients(grouped.combine(grouped.dispatch(x, plan), gate, plan), [x, gate])
    kept = gate * (expert < E)
    reference = with_gradients(
        torch.zeros_like(x).index_add(0, token, x[token] * kept[:, None]), [x, gate]
    )
    torch.testing.assert_close(ours, reference)


def test_tokens_out_of_order_are_refused():
    with pytest.raises(ValueError, match="in the order of their tokens"):
        grouped.plan(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 1]), E, T)


def test_neighbours_share_a_size_where_that_costs_less_than_a_call():
    assert _padded([60, 100, 500, 1], rows_per_product=64) == [128, 128, 512, 64]
    assert _padded([60, 100, 500, 1], rows_per_product=10_000) == [512] * 4
    assert _padded([0, 0, 65], rows_per_product=0) == [0, 0, 128]
