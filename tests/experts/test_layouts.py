"""Every layout against its dense definition y = shared(x) + sum_e gate_e E_e(x),
and against its neighbours.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.model.moe import MoE
from app.registry import find, knobs, names
from experts import grouped
from experts.contract import Experts, FeedForward, Stack
from routers.contract import Context, Routing

B = 2
S = 12
D = 16
T = B * S
LAYOUTS = {
    "coarse": {"num_experts": 5, "top_k": 2, "hidden_dim": 8},
    "fine_grained": {"num_experts": 3, "top_k": 1, "hidden_dim": 8, "segments": 2},
    "deepseek": {"num_experts": 3, "top_k": 2, "hidden_dim": 8, "segments": 2, "num_shared": 1},
    "shared_gated": {"num_experts": 5, "top_k": 2, "hidden_dim": 8, "shared_dim": 12},
    "residual": {
        "num_experts": 5,
        "top_k": 1,
        "hidden_dim": 8,
        "dense_dim": 12,
        "coefficient": True,
    },
    "latent": {"num_experts": 5, "top_k": 2, "hidden_dim": 8, "shrink": 4, "shared_dim": 6},
    "moepp": {
        "num_ffn": 3,
        "num_zero": 1,
        "num_copy": 1,
        "num_constant": 2,
        "top_k": 3,
        "hidden_dim": 8,
    },
    "longcat": {"num_ffn": 3, "num_identity": 2, "top_k": 2, "hidden_dim": 8},
    "heterogeneous": {"hidden_dims": [8, 4, 12, 4], "top_k": 2},
    "grove": {
        "num_experts": 6,
        "top_k": 3,
        "hidden_dim": 8,
        "group_size": 2,
        "adjugate_dim": 4,
        "adjugate_scale": 0.5,
    },
    "lora_skills": {
        "skills": ["a", "b", "c"],
        "top_k": 2,
        "hidden_dim": 8,
        "rank": 2,
        "scale": 2.0,
        "linears": "ffn",
        "level": "layer",
    },
}
EVERY = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Fixed(nn.Module):
    """A router that was told the answer: gates (T, E), 0 where an expert is not chosen."""

    def __init__(self, gates: Tensor) -> None:
        super().__init__()
        self.gates = nn.Parameter(gates)

    def forward(self, x: Tensor, context: Context) -> Routing:
        token, expert = self.gates.nonzero().unbind(1)
        gate = self.gates[token, expert]
        kept = gate.new_ones(gate.shape, dtype=torch.bool)
        return Routing(token, expert, gate, kept, *[self.gates] * 3, 1, context.valid, None)


def build(name: str, dtype: torch.dtype = torch.float64, **changed: object) -> Experts:
    layout = find("experts", name)(D, **{**LAYOUTS[name], **changed}).to(dtype)
    for parameter in layout.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layout


def tokens() -> Tensor:
    return torch.randn(B, S, D, dtype=torch.float64)


def top_gates(layout: Experts) -> Tensor:
    scores = torch.rand(T, layout.num_experts, dtype=torch.float64).softmax(-1)
    return scores * (scores >= scores.topk(layout.top_k).values[:, -1:])


def through_the_layer(layout: Experts, x: Tensor, gates: Tensor) -> Tensor:
    return MoE(Fixed(gates), layout)(x, Context(torch.ones(B, S, dtype=torch.bool)))[0].view(T, D)


def network(module: FeedForward | Stack, x: Tensor, expert: int | None = None) -> Tensor:
    """One SwiGLU network, written out."""
    w_in = module.w_in
    w_out = module.w_out
    w_in = w_in.weight.T if expert is None else w_in[expert]
    w_out = w_out.weight.T if expert is None else w_out[expert]
    gate, up = (x @ w_in).chunk(2, -1)
    return (functional.silu(gate) * up) @ w_out


def expert_output(name: str, layout: Experts, x: Tensor, e: int) -> Tensor:
    """E_e(x) for all tokens x (T, D), by the formula in the layout's docstring."""
    if name == "latent":
        return layout.up(network(layout.routed, layout.down(x), e))
    if name == "heterogeneous":
        stacks = [(stack, i) for stack in layout.routed for i in range(len(stack.w_in))]
        return network(stacks[e][0], x, stacks[e][1])
    if name == "grove":
        experts, adjugates = layout.routed
        return network(experts, x, e) + layout.scale * network(adjugates, x, e // layout.group_size)
    if name == "longcat" and e >= layout.num_ffn:
        return x
    if name == "lora_skills":
        return under_skill(layout, x, e) - network(layout.common, x)
    if name == "moepp" and e >= layout.num_ffn:
        if e < layout.first_copy:
            return torch.zeros_like(x)
        if e < layout.num_experts - layout.num_constant:
            return x
        i = e - layout.num_experts + layout.num_constant
        share = (x @ layout.mix[i].T).softmax(-1)
        return share[:, :1] * x + share[:, 1:] * layout.constant[i]
    return network(layout.routed, x, e)


def under_skill(layout: Experts, x: Tensor, e: int) -> Tensor:
    """The network of a library under one of its skills, as one matrix each."""
    layers = layout.common.w_in, layout.common.w_out
    w_in, w_out = (w.weight.T + layout.scale * w.skills_a[e] @ w.skills_b[e] for w in layers)
    gate, up = (x @ w_in).chunk(2, -1)
    return (functional.silu(gate) * up) @ w_out


def shared_output(name: str, layout: Experts, x: Tensor) -> Tensor:
    if getattr(layout, "common", None) is None:
        return torch.zeros_like(x)
    y = network(layout.common, x)
    if name == "shared_gated":
        return (x @ layout.common_gate.weight.T).sigmoid() * y
    return coefficients(layout, x)[:, 1:] * y if name == "residual" else y


def coefficients(layout: Experts, x: Tensor) -> Tensor:
    """DeepSpeed's weights of the experts and of the dense network (T, 2)."""
    if layout.common_mix is None:
        return torch.ones(len(x), 2, dtype=x.dtype)
    return (x @ layout.common_mix.weight.T + layout.common_mix.bias).softmax(-1)


def dense(name: str, layout: Experts, x: Tensor, gates: Tensor) -> Tensor:
    x = x.view(T, D)
    routed = [
        gates[:, e : e + 1] * expert_output(name, layout, x, e) for e in range(layout.num_experts)
    ]
    mixed = coefficients(layout, x)[:, :1] if name == "residual" else 1
    return shared_output(name, layout, x) + mixed * sum(routed)


def same_weights(target: nn.Module, source: nn.Module) -> None:
    pairs = zip(target.parameters(), source.parameters(), strict=True)
    for to, other in pairs:
        to.data.copy_(other.data.view_as(to))


def test_every_routed_layout_is_tested_here():
    assert set(names("experts")) == {*LAYOUTS, "dense"}


@EVERY
def test_the_table_above_sets_every_knob(name):
    assert set(LAYOUTS[name]) == set(knobs(find("experts", name)))


@EVERY
def test_the_layer_equals_its_dense_definition_with_all_gradients(name):
    layout = build(name)
    x = tokens().requires_grad_()
    gates = top_gates(layout).requires_grad_()
    inputs = [x, *layout.parameters()]
    ours = through_the_layer(layout, x, gates)
    reference = dense(name, layout, x, gates)
    torch.testing.assert_close(ours, reference)
    weight = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((reference * weight).sum(), inputs),
    )


@EVERY
def test_every_gate_gets_the_gradient_of_the_dense_definition(name):
    layout = build(name)
    x = tokens()
    router = Fixed(top_gates(layout))
    weight = torch.randn(T, D, dtype=torch.float64)
    y = MoE(router, layout)(x, Context(torch.ones(B, S, dtype=torch.bool)))[0].view(T, D)
    dense_gates = router.gates.detach().clone().requires_grad_()
    (reference,) = torch.autograd.grad(
        (dense(name, layout, x, dense_gates) * weight).sum(), dense_gates
    )
    (ours,) = torch.autograd.grad((y * weight).sum(), router.gates)
    torch.testing.assert_close(ours, reference * (router.gates > 0))


@EVERY
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(name):
    layout = build(name)
    gates = torch.rand(T, layout.num_experts, dtype=torch.float64) + 0.1  # every expert chosen
    through_the_layer(layout, tokens(), gates).square().sum().backward()
    for key, parameter in layout.named_parameters():
        assert (
            parameter.grad is not None
            and parameter.grad.isfinite().all()
            and parameter.grad.abs().sum() > 0
        ), key


@EVERY
def test_an_expert_without_tokens_gets_a_zero_gradient_and_not_none(name):
    layout = build(name)
    gates = torch.zeros(T, layout.num_experts, dtype=torch.float64)
    gates[:, 0] = 0.5
    through_the_layer(layout, tokens(), gates).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layout.parameters())


@EVERY
def test_dropped_assignments_add_nothing(name):
    layout = build(name)
    x = tokens()
    gates = top_gates(layout)
    half = torch.cat((gates[: T // 2], torch.zeros_like(gates[T // 2 :])))
    router = Fixed(gates)
    forward = router.forward

    def dropping(x: Tensor, context: Context) -> Routing:
        routing = forward(x, context)
        return routing._replace(kept=routing.token < T // 2)

    router.forward = dropping
    y = MoE(router, layout)(x, Context(torch.ones(B, S, dtype=torch.bool)))[0].view(T, D)
    torch.testing.assert_close(y, dense(name, layout, x, half))


@EVERY
def test_bfloat16_stays_close_to_float64(name):
    layout = build(name)
    x = tokens()
    gates = top_gates(layout)
    low = build(name, torch.bfloat16)
    same_weights(low, layout)
    ours = through_the_layer(low, x.bfloat16(), gates.float()).double()
    assert (ours - dense(name, layout, x, gates)).norm() < 0.02 * dense(
        name, layout, x, gates
    ).norm()


@EVERY
def test_parameters_are_told_exactly(name):
    layout = build(name)
    own = {
        key: p.numel()
        for key, p in layout.named_parameters()
        if not key.startswith(("common", "down", "up"))
    }
    # of skills
    own |= {key: p.numel() for key, p in layout.named_parameters() if ".skills_" in key}
    assert len(layout.expert_params()) == layout.num_experts
    assert sum(layout.expert_params()) == sum(own.values())
    assert layout.active_params(layout.num_experts) == pytest.approx(sum(own.values()))


@pytest.mark.parametrize(
    ("one", "changed", "other", "same"),
    [
        ("fine_grained", {"segments": 1}, "coarse", {"num_experts": 3, "top_k": 1}),
        ("deepseek", {"num_shared": 0}, "fine_grained", {"top_k": 2}),
        ("residual", {"dense_dim": 0, "top_k": 2}, "coarse", {}),
        ("moepp", {"num_zero": 0, "num_copy": 2, "num_constant": 0, "top_k": 2}, "longcat", {}),
        ("longcat", {"num_identity": 0}, "coarse", {"num_experts": 3}),
        ("heterogeneous", {"hidden_dims": [8] * 5}, "coarse", {}),
    ],
)
def test_a_layout_reduces_to_its_neighbour(one, changed, other, same):
    first = build(one, **changed)
    second = build(other, **same)
    same_weights(first, second)
    x = tokens()
    gates = top_gates(first)
    assert (first.num_experts, first.top_k) == (second.num_experts, second.top_k)
    torch.testing.assert_close(
        through_the_layer(first, x, gates), through_the_layer(second, x, gates)
    )


def test_one_expert_for_every_token_is_the_dense_network():
    single = build("coarse", num_experts=1, top_k=1)
    common = find("experts", "dense")(D, hidden_dim=8).double()
    common.common.w_in.weight.data = single.routed.w_in[0].T.detach().clone()
    common.common.w_out.weight.data = single.routed.w_out[0].T.detach().clone()
    x = tokens()
    y = through_the_layer(single, x, torch.ones(T, 1, dtype=torch.float64))
    torch.testing.assert_close(y, common.shared(x.view(T, D)))


def test_latent_with_identity_projections_is_coarse():
    latent = build("latent", shrink=1, shared_dim=0)
    coarse = build("coarse")
    latent.down.weight.data = latent.up.weight.data = torch.eye(D, dtype=torch.float64)
    same_weights(latent.routed, coarse.routed)
    x = tokens()
    gates = top_gates(coarse)
    torch.testing.assert_close(
        through_the_layer(latent, x, gates), through_the_layer(coarse, x, gates)
    )


def test_grove_computes_an_adjugate_once_for_a_token_that_has_two_experts_of_its_group():
    layout = build("grove")  # groups {0,1} {2,3} {4,5}, adjugates 6 7 8
    token = torch.tensor([0, 0, 0, 1, 1])
    expert = torch.tensor([1, 0, 4, 3, 6])
    gate = torch.tensor([0.5, 0.25, 0.125, 0.5, 0.25])
    token, expert, gate = layout.assign(token, expert, gate, num_tokens=2)
    unassigned = layout.num_computed
    assert expert.tolist() == [1, 6, 0, unassigned, 4, 8, 3, 7, unassigned, unassigned]
    assert token.tolist() == [0] * 6 + [1] * 4
    assert gate[expert < unassigned].tolist() == [0.5, 0.375, 0.25, 0.125, 0.0625, 0.5, 0.25]


def test_grove_counts_the_groups_that_a_token_meets_on_average():
    layout = build("grove")
    experts, adjugates = (stack.params()[0] for stack in layout.routed)
    chosen = torch.combinations(torch.arange(6), 3)
    groups = torch.tensor([len(set((row // 2).tolist())) for row in chosen]).float().mean().item()
    assert layout.active_params(3) == pytest.approx(3 * experts + groups * adjugates)


@pytest.mark.parametrize("name", ["latent", "moepp", "longcat"])
def test_the_layer_compiles_without_a_graph_break(name):
    layout = build(name, torch.float32)
    x = tokens().float().view(T, D)
    gate = torch.rand(T * layout.top_k)
    expert = torch.rand(T, layout.num_experts).topk(layout.top_k).indices.flatten()
    token = torch.arange(T).repeat_interleave(layout.top_k)

    def forward(x: Tensor, token: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
        token, expert, gate = layout.assign(token, expert, gate, len(x))
        plan = grouped.plan(expert, token, layout.num_computed, len(x))
        return layout.leave(
            grouped.combine(layout(grouped.dispatch(layout.enter(x), plan), plan.ends), gate, plan),
            x,
        )

    torch.compiler.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, token, expert, gate), forward(x, token, expert, gate))


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("coarse", {"top_k": 6}, "top_k=6"),
        ("fine_grained", {"segments": 3}, "segments=3"),
        ("deepseek", {"num_shared": 4}, "num_shared=4"),
        ("shared_gated", {"shared_dim": 0}, "shared_dim=0"),
        ("residual", {"dense_dim": -1}, "dense_dim=-1"),
        ("latent", {"shrink": 3}, "shrink=3"),
        ("moepp", {"num_copy": -1}, "num_copy=-1"),
        ("longcat", {"top_k": 6}, "top_k=6"),
        ("heterogeneous", {"hidden_dims": []}, "hidden_dims="),
        ("grove", {"group_size": 4}, "group_size=4"),
    ],
)
def test_a_wrong_knob_is_named_with_its_value(name, changed, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changed)
