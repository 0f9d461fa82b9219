"""The controllers against their update rules in NumPy, and what they promise."""

import numpy as np
import pytest
import torch
from torch import Tensor

from app.config.parts import build_part
from app.registry import names
from routers.balancer import Balancer
from routers.contract import Routing
from tests.support.routings import routing, sizes, term

L = 2
E = 8
K = 2
T = 400
STEERING = [name for name in names("balance") if build_part("balance", name).offset() is not None]


def loads(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 200, (L, E)).float()


def violation(load: Tensor) -> np.ndarray:
    load = load.double().numpy()
    return 1 - load / load.mean(-1, keepdims=True)


def made(seed: int, offset: Tensor, k: int = K) -> list[Routing]:
    """Top-k of skewed softmax scores plus an offset (L, E)."""
    torch.manual_seed(seed)
    logits = torch.randn(4, T // 4, E) + torch.linspace(0, 3, E)
    scores = logits.flatten(0, 1).softmax(-1)
    return [routing(logits, (scores + row).topk(k).indices) for row in offset]


def spread(routings: list[Routing]) -> float:
    """MaxVio."""
    load = torch.bincount(routings[0].expert, minlength=E)[:E].float()
    return float(load.max() / load.mean() - 1)


def test_pid_equals_the_position_form_of_the_controller():
    part = term("pid", sizes(E, K), proportional=0.3, integral=0.1, derivative=0.2, memory=0.4)
    smooth = np.zeros((L, E))
    errors = [np.zeros((L, E))] * 2
    for step in range(6):
        part.update(loads(step), torch.tensor(100))
        smooth = 0.4 * smooth + 0.6 * violation(loads(step))
        errors.append(smooth)
        bias = 0.3 * errors[-1] + 0.1 * sum(errors) + 0.2 * (errors[-1] - errors[-2])
        np.testing.assert_allclose(part.offset(), bias, rtol=1e-4, atol=1e-5)


def test_pid_equals_longcats_rule_and_leaves_identity_experts_alone():
    """db_i = mu (K_e / (K N) - T_i / (K T)) for the N experts with a network,
    in LongCat's letters.
    """
    num_ffn = 5
    k = 3
    wanted = 2.2
    mu = 0.04
    tokens = 700
    size = sizes(E, k)._replace(free=(5, 6, 7))
    rate = mu * wanted / (k * num_ffn)
    part = term("pid", size, integral=rate, expected=wanted, free=-1.0)
    bias = np.zeros((L, E))
    for step in range(3):
        part.update(loads(step), torch.tensor(tokens))
        bias += mu * (wanted / (k * num_ffn) - loads(step).numpy() / (k * tokens))
        np.testing.assert_allclose(part.offset()[:, :5], bias[:, :5], rtol=1e-4, atol=1e-6)
        assert part.offset()[:, 5:].eq(-1).all()


def test_the_pool_as_it_is_needs_no_expected_number():
    """At K_e / K = N / (N + Z) the target is the mean load, and mu = I (N + Z)."""
    load = 30 * torch.ones(L, E) + torch.arange(E)  # T = 120 tokens, K = 2 and a bit
    tokens = load[0].sum() / K
    own = term("pid", sizes(E, K)._replace(free=(6, 7)), integral=0.1)
    stated = term("pid", sizes(E, K)._replace(free=(6, 7)), integral=0.1, expected=K * 6 / E)
    for part in (own, stated):
        part.update(load, tokens)
    torch.testing.assert_close(own.offset(), stated.offset())
    assert own.offset()[:, :6].any() and own.offset()[:, 6:].eq(0).all()


@pytest.mark.parametrize("name", ["loss_free", "pid", "momentum_bias"])
def test_a_violation_is_not_clamped_where_the_mean_load_is_below_one(name):
    """One token, one expert of eight: the mean load is 1/8,
    the violation of the chosen one is 1 - 8 = -7.
    """
    load = torch.zeros(L, E).index_fill(1, torch.tensor([3]), 1.0)
    if name == "momentum_bias":
        part = term(name, sizes(E, 1), rate=1.0, sharpness=0.1, momentum=0.0)
        expected = np.tanh(-0.7)
        expected -= (np.tanh(-0.7) + 7 * np.tanh(0.1)) / 8
    elif name == "pid":
        part = term(name, sizes(E, 1), integral=1.0)
        expected = -7.0
    else:
        part = term(name, sizes(E, 1), rate=1.0, rule="proportional", recenter=False)
        expected = -7.0
    part.update(load, torch.tensor(1))
    np.testing.assert_allclose(part.offset()[:, 3], expected, rtol=1e-5)


@pytest.mark.parametrize("recenter", [True, False])
@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_loss_free_raises_the_bias_of_an_expert_with_too_little_and_stops_at_its_freeze_step(
    rule, recenter
):
    part = term("loss_free", sizes(E, K), rate=0.01, rule=rule, recenter=recenter, freeze_step=3)
    bias = np.zeros((L, E))
    for step in range(5):
        part.update(loads(step), torch.tensor(100))
        change = np.sign(violation(loads(step))) if rule == "sign" else violation(loads(step))
        change = change - change.mean(-1, keepdims=True) if recenter else change
        bias = bias + 0.01 * change * (step < 3)
        np.testing.assert_allclose(part.offset(), bias, rtol=1e-4, atol=1e-6)
    least = loads(0)[0].argmin()
    assert part.bias[0, least] == part.bias[0, least] and abs(float(part.bias.mean())) < (
        1e-6 if recenter else 1
    )


def test_pid_without_p_and_d_is_the_proportional_rule():
    pid = term("pid", sizes(E, K), proportional=0.0, integral=0.1, derivative=0.0, memory=0.0)
    free = term("loss_free", sizes(E, K), rate=0.1, rule="proportional", recenter=False)
    for step in range(3):
        pid.update(loads(step), torch.tensor(100))
        free.update(loads(step), torch.tensor(100))
    torch.testing.assert_close(pid.offset(), free.offset())


def test_momentum_bias_follows_its_rule():
    part = term("momentum_bias", sizes(E, K), rate=0.01, sharpness=2.0, momentum=0.7)
    bias = np.zeros((L, E))
    speed = np.zeros((L, E))
    for step in range(5):
        part.update(loads(step), torch.tensor(100))
        change = 0.01 * np.tanh(2 * violation(loads(step)))
        speed = 0.7 * speed + 0.3 * (change - change.mean(-1, keepdims=True))
        bias = bias + speed
        np.testing.assert_allclose(part.offset(), bias, rtol=1e-4, atol=1e-7)


def test_quantile_reads_the_quantile_of_the_required_bias_from_its_histogram():
    part = term("quantile", sizes(E, K), bins=20_000)
    old = 0.1 * torch.randn(L, E, generator=torch.Generator().manual_seed(0))
    part.bias.copy_(old)
    routings = made(0, old)
    part.update(part.observe(routings), torch.tensor(T))
    for layer, r in enumerate(routings):
        choice = (r.scores + old[layer]).double().numpy()
        alpha = np.sort(choice, axis=1)[:, [-K - 1]]
        exact = np.quantile(alpha - r.scores.double().numpy(), K / E, axis=0)
        np.testing.assert_allclose(part.offset()[layer], exact - exact.mean(), atol=5e-3)


def test_quantile_balances_a_fixed_batch_in_a_few_steps():
    part = term("quantile", sizes(E, K))
    assert spread(made(0, part.offset())) > 1
    for _ in range(5):
        part.update(part.observe(made(0, part.offset())), torch.tensor(T))
    assert spread(made(0, part.offset())) < 0.1


def test_quantile_gives_the_same_from_micro_batches_as_from_the_whole():
    part = term("quantile", sizes(E, K))
    r = made(0, part.offset())[0]
    cut = routing(r.logits.view(4, T // 4, E)[:2], r.expert.view(T, K)[: T // 2])
    rest = routing(r.logits.view(4, T // 4, E)[2:], r.expert.view(T, K)[T // 2 :])
    both = part.observe([cut] * L) + part.observe([rest] * L)
    torch.testing.assert_close(both, part.observe([r] * L))


def test_threshold_is_the_running_quantile_and_starts_with_the_first():
    part = term("threshold", sizes(E, K), memory=0.75)
    tau = None
    for step in range(4):
        routings = made(step, part.offset())
        part.update(part.observe(routings), torch.tensor(T))
        logits = routings[0].logits
        assert logits.gt(-part.offset()[0]).sum(0).eq(T * K / E).all() or step > 0
        ordered = logits.sort(0, descending=True).values[T * K // E].double().numpy()
        tau = ordered if tau is None else 0.75 * tau + 0.25 * ordered
        np.testing.assert_allclose(-part.offset()[0], tau, rtol=1e-4)


def test_lambda_grows_while_too_many_are_selected_and_shrinks_while_too_few_are():
    part = term("relu_lambda", sizes(E, K), start=1e-3, rate=1.2)
    tokens = torch.tensor(100)
    for share, factor in ((3.0, 1.2), (1.0, 1 / 1.2), (2.0, 1.0)):
        before = part.coefficient.clone()
        part.update(torch.full((L, E), share * 100 / E), tokens)
        torch.testing.assert_close(part.coefficient, before * factor)
    for _ in range(600):
        part.update(torch.full((L, E), 0.0), tokens)
    assert part.coefficient > 0


@pytest.mark.parametrize("name", [*STEERING, "relu_lambda"])
def test_a_step_without_tokens_changes_nothing_for_the_worse(name):
    part = term(name, sizes(E, K))
    routings = made(0, torch.zeros(L, E))
    for _ in range(3):
        part.update(part.observe(routings), torch.tensor(T))
    before = {
        key: b.clone() for key, b in part.named_buffers() if key in ("bias", "tau", "coefficient")
    }
    # the others see a violation of 0
    if name in ("quantile", "threshold", "relu_lambda"):
        part.update(torch.zeros_like(part.observe(routings)), torch.tensor(0))
        assert all(torch.equal(b, dict(part.named_buffers())[key]) for key, b in before.items())


def test_only_one_term_may_steer():
    parts = {name: term(name, sizes(E, K)) for name in STEERING[:2]}
    with pytest.raises(ValueError, match="only one term"):
        Balancer(parts)


@pytest.mark.parametrize(
    ("name", "knob", "value"),
    [
        ("pid", "integral", 0.0),
        ("pid", "memory", 1.0),
        ("momentum_bias", "rate", 0.0),
        ("quantile", "bins", 1),
        ("quantile", "span", 0.0),
        ("threshold", "memory", 1.0),
        ("relu_lambda", "start", 0.0),
        ("relu_lambda", "rate", 1.0),
        ("device", "num_groups", 3),
        ("aux", "weight", -1.0),
        ("loss_free", "rate", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(name, knob, value):
    with pytest.raises(ValueError, match=f"^{knob}="):
        term(name, sizes(E, K), **{knob: value})
