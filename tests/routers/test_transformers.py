"""Our parts against the modules of `transformers` with copied weights: outputs and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.config.parts import build_part, defaults
from app.model.moe import MoE
from app.registry import find, make
from experts.contract import Experts, FeedForward
from routers.contract import Context
from routers.router import Router
from tests.support.transformers_experts import NAMES, SIZES, D, E, F, K, theirs

NAMES |= {"num_attention_heads": 2}
RESIDUAL = {
    "name": "residual",
    "num_experts": E,
    "hidden_dim": F,
    "dense_dim": F,
    "coefficient": False,
}


def ours(experts: Experts, weigh: dict[str, Any], select: str = "top_k", **knobs: Any) -> MoE:
    values = (
        {key: v for key, v in defaults("select", select).items() if key != "name"}
        | {"k": K}
        | knobs
    )
    name = weigh.pop("name")
    chosen = find("weigh", name)(SIZES, **weigh), find("select", select)(SIZES, **values)
    return MoE(
        Router(
            build_part("score", "linear", SIZES), *chosen, build_part("drop", "none", SIZES), SIZES
        ),
        experts,
    )


def coarse() -> Experts:
    return make(
        "experts",
        {"name": "coarse", "num_experts": E, "top_k": K, "hidden_dim": F},
        D,
        key="experts",
    )


def deepseek(num_shared: int) -> Experts:
    values = defaults("experts", "deepseek") | {
        "segments": 1,
        "hidden_dim": F,
        "num_shared": num_shared,
    }
    return make(
        "experts",
        values | {"num_experts": E + num_shared, "top_k": K + num_shared},
        D,
        key="experts",
    )


@torch.no_grad()
def copy(block: nn.Module, layer: MoE) -> None:
    """Their router and experts into ours."""
    layer.router.score.proj.weight.copy_(block.gate.weight)
    layer.experts.routed.w_in.copy_(block.experts.gate_up_proj.mT)
    layer.experts.routed.w_out.copy_(block.experts.down_proj.mT)


@torch.no_grad()
def copy_shared(mlp: nn.Module, ffn: FeedForward) -> None:
    ffn.w_in.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    ffn.w_out.weight.copy_(mlp.down_proj.weight)


def both(block: nn.Module, layer: MoE, offset: Tensor | float = 0.0, call: Any = None) -> None:
    """Outputs, gradients of the input and of the router are equal."""
    x = torch.randn(3, 7, D)
    context = Context(torch.ones(3, 7, dtype=torch.bool), offset=offset)
    weight = torch.linspace(-1, 1, x.numel()).view_as(x)
    results = []
    sides = (
        (block.gate.weight, call or block),
        (layer.router.score.proj.weight, lambda t: layer(t, context)[0]),
    )
    for module, forward in sides:
        inner = x.clone().requires_grad_()
        y = forward(inner)
        results.append((y, *torch.autograd.grad((y * weight).sum(), [inner, module])))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "prefix", "normalize"),
    [
        ("mixtral", "Mixtral", True),
        ("olmoe", "Olmoe", False),
        ("olmoe", "Olmoe", True),
        ("qwen3_moe", "Qwen3Moe", True),
    ],
)
def test_softmax_top_k_equals_mixtral_olmoe_and_qwen3(folder, prefix, normalize):
    values = NAMES | {"num_experts": E, "norm_topk_prob": normalize}
    if folder == "mixtral":
        values = NAMES | {"num_local_experts": E}
    block = theirs(folder, f"{prefix}SparseMoeBlock", f"{prefix}Config", **values)
    layer = ours(coarse(), {"name": "softmax", "normalize": normalize, "scale": 1.0})
    copy(block, layer)
    both(block, layer)


def test_the_gated_shared_layout_equals_qwen2():
    values = {"shared_expert_intermediate_size": 10, "num_experts": E, "norm_topk_prob": False}
    block = theirs("qwen2_moe", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", **NAMES, **values)
    gated = {
        "name": "shared_gated",
        "num_experts": E,
        "top_k": K,
        "hidden_dim": F,
        "shared_dim": 10,
    }
    layer = ours(
        make("experts", gated, D, key="experts"),
        {"name": "softmax", "normalize": False, "scale": 1.0},
    )
    copy(block, layer)
    copy_shared(block.shared_expert, layer.experts.common)
    with torch.no_grad():
        layer.experts.common_gate.weight.copy_(block.shared_expert_gate.weight)
    both(block, layer)


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_group_limited_softmax_equals_deepseek_v2(method):
    values = {"n_group": 4, "topk_group": 2, "topk_method": method, "routed_scaling_factor": 16.0}
    values |= {"n_routed_experts": E, "n_shared_experts": 2}
    block = theirs("deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config", **NAMES, **values)
    limit = (
        {"select": "group_limited", "groups": 4, "limit": 2, "score": "max"}
        if "group" in method
        else {}
    )
    layer = ours(deepseek(2), {"name": "softmax", "normalize": False, "scale": 16.0}, **limit)
    copy(block, layer)
    copy_shared(block.shared_experts, layer.experts.common)
    both(block, layer)


@pytest.mark.parametrize("biased", [False, True])
def test_sigmoid_with_bias_and_node_limit_equals_deepseek_v3(biased):
    values = {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    values |= {"n_routed_experts": E, "num_local_experts": E, "n_shared_experts": 1}
    block = theirs("deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config", **NAMES, **values)
    bias = torch.randn(E) * biased
    block.gate.e_score_correction_bias.copy_(bias)
    weigh = {"name": "sigmoid", "normalize": True, "scale": 2.5}
    layer = ours(deepseek(1), weigh, "group_limited", groups=4, limit=2, score="top2")
    copy(block, layer)
    copy_shared(block.shared_experts, layer.experts.common)
    both(block, layer, offset=bias)


def test_top_1_with_capacity_equals_the_switch_router():
    values = {"hidden_size": D, "num_experts": E, "expert_capacity": 2, "router_jitter_noise": 0.0}
    router = theirs(
        "switch_transformers", "SwitchTransformersTop1Router", "SwitchTransformersConfig", **values
    )
    # one sequence: transformers counts the capacity per sequence
    x = torch.randn(1, 10, D)
    mask, gate, logits = router(x)
    sizes = SIZES._replace(top_k=1)
    capacity = find("drop", "capacity")
    # ceil(1.6 * 10 / 8) = 2 places
    drop = capacity(sizes, factor=1.6, order="position", exempt=0.0, eval=True)
    weigh = find("weigh", "softmax")(sizes, normalize=False, scale=1.0)
    made = Router(
        build_part("score", "linear", sizes),
        weigh,
        find("select", "top_k")(sizes, k=1),
        drop,
        sizes,
    ).eval()
    with torch.no_grad():
        made.score.proj.weight.copy_(router.classifier.weight)
    routing = made(x[0], Context(torch.ones(1, 10, dtype=torch.bool)))
    torch.testing.assert_close(routing.logits, logits[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(routing.gate, gate[0, :, 0], rtol=1e-5, atol=1e-5)
    assert torch.equal(routing.kept, mask[0].any(-1)) and not routing.kept.all()
    assert torch.equal(routing.expert[routing.kept], mask[0].argmax(-1)[routing.kept])


def test_sqrt_softplus_equals_deepseek_v4():
    from transformers.activations import ACT2FN

    if "sqrtsoftplus" not in ACT2FN:
        pytest.skip("this version of transformers has no sqrtsoftplus")
    logits = torch.randn(5, E) * 4
    scores = build_part("weigh", "sqrt_softplus", SIZES).scores(logits)
    torch.testing.assert_close(scores, ACT2FN["sqrtsoftplus"](logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_the_gate_on_the_input_equals_llama_4(k):
    values = NAMES | {"num_local_experts": E, "num_experts_per_tok": k, "intermediate_size_mlp": F}
    block = theirs("llama4", "Llama4TextMoe", "Llama4TextConfig", **values)
    layout = make("experts", {**RESIDUAL, "top_k": k}, D, key="experts")
    layer = ours(layout, {"name": "sigmoid_input", "normalize": False, "scale": 1.0}, k=k)
    with torch.no_grad():
        layer.router.score.proj.weight.copy_(block.router.weight)
        layer.experts.routed.w_in.copy_(block.experts.gate_up_proj)
        layer.experts.routed.w_out.copy_(block.experts.down_proj)
        copy_shared(block.shared_expert, layer.experts.common)
    block.gate = block.router
    x = torch.randn(3, 7, D)
    both(block, layer, call=lambda t: block(t)[0].view_as(t))
    plain = ours(layout, {"name": "sigmoid", "normalize": False, "scale": 1.0}, k=k)
    plain.router.score = layer.router.score
    assert not torch.allclose(layer(x)[0], plain(x)[0], atol=1e-3)
