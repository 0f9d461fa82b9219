"""Activations of experts: formulas, stacks against single networks with all gradients,
and against transformers.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.config.parts import build_part, defaults
from app.model.moe import MoE
from app.registry import find, make, names
from experts import grouped
from experts.activation.contract import Activation
from experts.contract import Experts, FeedForward, Stack
from routers.contract import Context
from routers.router import Router
from tests.support.transformers_experts import NAMES, SIZES, D, E, F, K, theirs

NAMED = {name: build_part("activation", name) for name in names("activation")}
GPT_OSS = find("activation", "clamped_swiglu")(limit=7.0, alpha=1.702, shift=1.0, bias=True)
ALL = {**NAMED, "gpt_oss": GPT_OSS}
every = pytest.mark.parametrize("activation", ALL.values(), ids=ALL)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2


FORMULAS = {
    "swiglu": lambda g, u: g * sigmoid(g) * u,
    "geglu": lambda g, u: gelu(g) * u,
    "clamped_swiglu": lambda g, u: (
        np.minimum(g, 10) * sigmoid(np.minimum(g, 10)) * np.clip(u, -10, 10)
    ),
    "gpt_oss": lambda g, u: (
        np.minimum(g, 7) * sigmoid(1.702 * np.minimum(g, 7)) * (np.clip(u, -7, 7) + 1)
    ),
    "relu2": lambda g, u: np.maximum(np.concatenate((g, u), 1), 0) ** 2,
}


@every
def test_an_activation_equals_its_formula_also_where_it_clamps(activation: Activation) -> None:
    name = next(key for key, value in ALL.items() if value is activation)
    hidden = 8 * torch.randn(20, 12, dtype=torch.float64)
    gate = hidden.numpy()[:, :6]
    up = hidden.numpy()[:, 6:]
    np.testing.assert_allclose(activation(hidden), FORMULAS[name](gate, up), rtol=1e-9, atol=1e-12)
    assert hidden.abs().max() > 10


@every
def test_a_stack_equals_its_networks_with_all_gradients_and_is_zero_after_the_last_row(
    activation: Activation,
) -> None:
    torch.manual_seed(0)
    stack = Stack(4, D, F)
    loads = [3, 0, 5, 2]
    stack.activation = activation
    stack.make()
    stack.double()
    for parameter in stack.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(13, D, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor(loads).cumsum(0).to(torch.int32)
    y = stack(x, ends)
    assert y[10:].eq(0).all()
    parts = []
    for e, rows in enumerate(x[:10].split(loads)):
        hidden = rows @ stack.w_in[e] + (0 if stack.b_in is None else stack.b_in[e])
        parts.append(
            activation(hidden) @ stack.w_out[e] + (0 if stack.b_out is None else stack.b_out[e])
        )
    expected = torch.cat(parts)
    torch.testing.assert_close(y[:10], expected)
    weight = torch.randn_like(expected)
    leaves = [x, *stack.parameters()]
    ours = torch.autograd.grad((y[:10] * weight).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weight).sum(), leaves))
    assert stack.params() == [sum(p[0].numel() for p in stack.parameters())] * 4


def test_the_grouped_product_has_the_gradient_of_its_definition() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda a, b: grouped.product(a, ends, b), (x, weight))


@pytest.mark.parametrize("name", [name for name in names("experts") if name != "grove"])
def test_a_layout_has_the_activation_in_every_network(name: str) -> None:
    layout = build_part("experts", name)
    layout.activate(GPT_OSS)
    networks = [m for m in layout.modules() if isinstance(m, FeedForward | Stack)]
    assert networks and all(network.activation is GPT_OSS for network in networks)
    biases = {id(p) for network in networks if isinstance(network, Stack) for p in network.biases()}
    assert biases <= {id(p) for p in layout.settled()}


def block(family: str, prefix: str, name: str, **values: Any) -> nn.Module:
    return theirs(family, f"{prefix}{name}", f"{prefix}Config", **NAMES, **values)


def ours(layout: Experts, weigh: dict[str, Any], score: dict[str, Any]) -> MoE:
    made = make("score", {"name": "linear", **score}, SIZES, key="score")
    values = {
        key: v for key, v in defaults("weigh", weigh["name"]).items() if key != "name"
    } | weigh
    values.pop("name")
    weighing = find("weigh", weigh["name"])(SIZES, **values)
    select = find("select", "top_k")(SIZES, k=K)
    drop = build_part("drop", "none", SIZES)
    return MoE(Router(made, weighing, select, drop, SIZES), layout)


def assert_same(block: Any, layer: MoE, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Outputs, and gradients of the input and of the given weights, are equal."""
    x = 3 * torch.randn(3, 7, D)
    weight = torch.linspace(-1, 1, 3 * 7 * D).view(3, 7, D)
    results = []
    for side, call in enumerate(
        (block, lambda t: layer(t, Context(torch.ones(3, 7, dtype=torch.bool)))[0])
    ):
        inner = x.clone().requires_grad_()
        y = call(inner).view_as(x)
        results.append(
            (y, *torch.autograd.grad((y * weight).sum(), [inner, *(pair[side] for pair in pairs)]))
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def layout(name: str, activation: Activation, **values: Any) -> Experts:
    made = make("experts", {"name": name, **values}, D, key="experts")
    made.activate(activation)
    return made


@torch.no_grad()
def test_gpt_oss_equals_transformers() -> None:
    block_ = block("gpt_oss", "GptOss", "MLP", num_local_experts=E)
    layer = ours(
        layout("coarse", GPT_OSS, num_experts=E, top_k=K, hidden_dim=F),
        {"name": "softmax", "normalize": True},
        {"bias": True},
    )
    score = layer.router.score.proj
    stack = layer.experts.routed
    halves = torch.cat((torch.arange(0, 2 * F, 2), torch.arange(1, 2 * F, 2)))  # theirs takes turns
    score.weight.copy_(block_.router.weight)
    score.bias.copy_(block_.router.bias)
    stack.w_in.copy_(block_.experts.gate_up_proj[..., halves])
    stack.b_in.copy_(block_.experts.gate_up_proj_bias[..., halves])
    stack.w_out.copy_(block_.experts.down_proj)
    stack.b_out.copy_(block_.experts.down_proj_bias)
    with torch.enable_grad():
        weights = [
            (block_.router.weight, score.weight),
            (block_.experts.down_proj_bias, stack.b_out),
        ]
        assert_same(lambda t: block_(t)[0], layer, weights)


@torch.no_grad()
def test_the_experts_of_deepseek_v4_equal_transformers() -> None:
    settings = {
        "n_routed_experts": E,
        "n_shared_experts": 1,
        "num_local_experts": E,
        "swiglu_limit": 1.0,
    }
    settings |= {"mlp_layer_types": ["moe"], "layer_types": None, "num_hidden_layers": 1}
    experts = block("deepseek_v4", "DeepseekV4", "Experts", **settings)
    activation = find("activation", "clamped_swiglu")(limit=1.0, alpha=1.0, shift=0.0, bias=False)
    stack = layout("coarse", activation, num_experts=E, top_k=K, hidden_dim=F).routed
    stack.w_in.copy_(experts.gate_up_proj.mT)
    stack.w_out.copy_(experts.down_proj.mT)
    x = torch.randn(E, D)  # one token an expert
    index = torch.arange(E)[:, None]
    y = stack(x, torch.arange(1, E + 1, dtype=torch.int32))
    torch.testing.assert_close(y, experts(x, index, torch.ones(E, 1)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_nemotron_h_equals_transformers() -> None:
    values = {
        "n_routed_experts": E,
        "num_local_experts": E,
        "moe_shared_expert_intermediate_size": F,
    }
    values |= {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "layers_block_type": ["moe"]}
    block_ = block("nemotron_h", "NemotronH", "MoE", **values)
    relu2 = NAMED["relu2"]
    layer = ours(
        layout(
            "residual", relu2, num_experts=E, top_k=K, hidden_dim=F, dense_dim=F, coefficient=False
        ),
        {"name": "sigmoid", "normalize": True, "scale": 2.5},
        {"bias": False},
    )
    layer.router.score.proj.weight.copy_(block_.gate.weight)
    layer.experts.routed.w_in.copy_(block_.experts.up_proj.mT)
    layer.experts.routed.w_out.copy_(block_.experts.down_proj.mT)
    layer.experts.common.w_in.weight.copy_(block_.shared_experts.up_proj.weight)
    layer.experts.common.w_out.weight.copy_(block_.shared_experts.down_proj.weight)
    with torch.enable_grad():
        assert_same(block_, layer, [(block_.gate.weight, layer.router.score.proj.weight)])
