"""The architectures of `transformers` that compute what some of our models do.

Mixtral (arXiv 2401.04088), OLMoE (2409.02060), Qwen2-MoE (2407.10671), Qwen3 and Qwen3-MoE
(2505.09388), GraniteMoe with shared experts (IBM 2024), DeepSeekMoE (2401.06066), GLM-4.5
(2508.06471), MiniMax-M2 (2025), Llama (2302.13971). What each computes is read off its modelling
code there, or off its paper; that ours gives the same logits is tested for each.
"""

from typing import Any

import torch
from torch import Tensor

from app.hub.architecture import Architecture, Views
from app.hub.facts import Facts
from app.hub.weights import GATED, directions, each_expert, network
from app.model.moe import MoE
from app.registry import UserError

USUAL = {"experts/activation": "swiglu", "model.qkv_bias": False}
SILU = {"hidden_act": "silu"}
NO_BIAS = {"attention_bias": False}
LINEAR = {
    "experts": "routed",
    "router/score": "linear",
    "router.score.bias": False,
    "router/drop": "none",
}
SOFTMAX = {
    **USUAL,
    **LINEAR,
    "router/select": "top_k",
    "router/weigh": "softmax",
    "router.weigh.scale": 1.0,
    "balance offset": False,
}
SIGMOID = {**USUAL, **LINEAR, "router/weigh": "sigmoid"}
DENSE = {**USUAL, "experts": "none"}
TOP_K = {
    "num_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "expert_dim": "moe_intermediate_size",
    "router.weigh.normalize": "norm_topk_prob",
    "model.hidden_dim": "intermediate_size",
}
LOCAL = {
    "num_experts": "num_local_experts",
    "top_k": "num_experts_per_tok",
    "expert_dim": "intermediate_size",
}
GLM = {
    **TOP_K,
    "num_experts": "n_routed_experts",
    "num_shared": "n_shared_experts",
    "router.weigh.scale": "routed_scaling_factor",
}
WHOLE_HEADS = {"rope_parameters": {"partial_rotary_factor": 1.0}}
MIXTRAL_NAMES = ("w1", "w3", "w2")


def _mixtral(layer: MoE, offset: Tensor | None) -> Views:
    return each_expert(layer, "block_sparse_moe.", MIXTRAL_NAMES)


def _minimax(layer: MoE, offset: Tensor | None) -> Views:
    bias = _bias(layer, offset)
    return {**_mixtral(layer, offset), "block_sparse_moe.e_score_correction_bias": bias}


def _plain(layer: MoE, offset: Tensor | None) -> Views:
    return each_expert(layer, "mlp.")


def _qwen2(layer: MoE, offset: Tensor | None) -> Views:
    """A shared expert of width 0 where ours has none, behind a gate that weighs nothing."""
    layout: Any = layer.experts
    if getattr(layout, "common", None) is not None:
        shared = network(layout.common, "mlp.shared_expert.")
        gate = layout.common_gate.weight
    else:
        shared = _empty(layer, "mlp.shared_expert.")
        gate = torch.zeros_like(directions(layer)[:1])
    return {**_plain(layer, offset), **shared, "mlp.shared_expert_gate.weight": gate}


def _glm(layer: MoE, offset: Tensor | None) -> Views:
    common: Any = getattr(layer.experts, "common", None)
    shared = (
        _empty(layer, "mlp.shared_experts.")
        if common is None
        else network(common, "mlp.shared_experts.")
    )
    return {
        **_plain(layer, offset),
        **shared,
        "mlp.gate.e_score_correction_bias": _bias(layer, offset),
    }


def _deepseek(layer: MoE, offset: Tensor | None) -> Views:
    common: Any = getattr(layer.experts, "common", None)
    return {
        **_plain(layer, offset),
        **({} if common is None else network(common, "mlp.shared_experts.")),
    }


def _granite(layer: MoE, offset: Tensor | None) -> Views:
    layout: Any = layer.experts
    named = {
        "block_sparse_moe.router.layer": directions(layer),
        "block_sparse_moe.input_linear": layout.routed.w_in.mT,
        "block_sparse_moe.output_linear": layout.routed.w_out.mT,
        "shared_mlp.input_linear": layout.common.w_in.weight,
        "shared_mlp.output_linear": layout.common.w_out.weight,
    }
    return {f"{name}.weight": weight for name, weight in named.items()}


def _bias(layer: MoE, offset: Tensor | None) -> Tensor:
    return torch.zeros(layer.router.num_experts) if offset is None else offset


def _empty(layer: MoE, prefix: str) -> Views:
    """A network of width 0."""
    none = directions(layer)[:0]
    return {
        f"{prefix}{name}.weight": w for name, w in zip(GATED, (none, none, none.T), strict=True)
    }


def _qwen2_halved(layer: MoE, offset: Tensor | None) -> Views:
    """A shared expert without a gate behind one that always gives 1/2, its last matrix doubled:
    the same bits.
    """
    common: Any = getattr(layer.experts, "common", None)
    shared = network(common, "mlp.shared_expert.")
    shared["mlp.shared_expert.down_proj.weight"] = 2 * common.w_out.weight
    return {
        **_plain(layer, offset),
        **shared,
        "mlp.shared_expert_gate.weight": torch.zeros_like(directions(layer)[:1]),
    }


def _qwen2_moe(shared: str, experts: Any, **more: int) -> Architecture:
    needs = {**SOFTMAX, "model.qk_norm": "none", "shared": shared}
    constants = {**SILU, "decoder_sparse_step": 1, "use_sliding_window": False, **more}
    keys = {**TOP_K, "model.qkv_bias": "qkv_bias"} | (
        {} if more else {"shared_dim": "shared_expert_intermediate_size"}
    )
    return Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        needs,
        keys,
        ("mlp_only_layers", "list"),
        constants,
        experts,
    )


def _glm4_moe(norm: str, shared: str, select: str) -> Architecture:
    needs = {**SIGMOID, "model.qk_norm": norm, "shared": shared, "router/select": select}
    constants = {
        **SILU,
        **WHOLE_HEADS,
        "use_qk_norm": norm == "head",
        "num_nextn_predict_layers": 0,
    }
    keys = {**GLM, "model.qkv_bias": "attention_bias", "balance offset": ""}
    if select == "top_k":
        constants |= {"n_group": 1, "topk_group": 1}
    else:
        needs |= {"router.select.score": "top2", "even groups of several experts": True}
        keys |= {"router.select.groups": "n_group", "router.select.limit": "topk_group"}
    return Architecture(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        needs,
        keys,
        ("first_k_dense_replace", "first"),
        constants,
        _glm,
    )


ARCHITECTURES = (
    Architecture(
        "llama",
        "LlamaForCausalLM",
        {**DENSE, "model.qk_norm": "none"},
        {"model.hidden_dim": "intermediate_size"},
        constants={**SILU, **NO_BIAS, "mlp_bias": False},
    ),
    Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        {**DENSE, "model.qk_norm": "head"},
        {"model.hidden_dim": "intermediate_size"},
        constants={**SILU, **NO_BIAS, "use_sliding_window": False},
    ),
    Architecture(
        "mixtral",
        "MixtralForCausalLM",
        {**SOFTMAX, "model.qk_norm": "none", "router.weigh.normalize": True, "shared": "none"},
        LOCAL,
        constants={**SILU, "sliding_window": None},
        experts=_mixtral,
    ),
    _qwen2_moe("none", _qwen2, shared_expert_intermediate_size=0),
    _qwen2_moe("gated", _qwen2),
    Architecture(
        "olmoe",
        "OlmoeForCausalLM",
        {**SOFTMAX, "model.qk_norm": "all", "shared": "none"},
        {**LOCAL, "num_experts": "num_experts", "router.weigh.normalize": "norm_topk_prob"},
        constants={**SILU, **NO_BIAS, "clip_qkv": None},
        experts=_plain,
    ),
    Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**SOFTMAX, "model.qk_norm": "head", "shared": "none"},
        TOP_K,
        ("mlp_only_layers", "list"),
        {**SILU, **NO_BIAS, "decoder_sparse_step": 1, "use_sliding_window": False},
        _plain,
    ),
    Architecture(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        {**SOFTMAX, "model.qk_norm": "none", "router.weigh.normalize": True, "shared": "plain"},
        {
            **LOCAL,
            "shared_dim": "shared_intermediate_size",
            "model.attention_scale": "attention_multiplier",
        },
        constants={
            **SILU,
            **NO_BIAS,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
        },
        experts=_granite,
    ),
    _qwen2_moe("plain", _qwen2_halved),
    *(
        _glm4_moe(norm, shared, select)
        for norm in ("none", "head")
        for shared in ("plain", "none")
        for select in ("top_k", "group_limited")
    ),
    Architecture(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        {
            **SIGMOID,
            "model.qk_norm": "all",
            "router/select": "top_k",
            "router.weigh.normalize": True,
            "router.weigh.scale": 1.0,
            "shared": "none",
        },
        {**LOCAL, "balance offset": ""},
        constants={**SILU, **WHOLE_HEADS},
        experts=_minimax,
    ),
    # not of transformers: the code of DeepSeekMoE lies beside its weights
    Architecture(
        "deepseek",
        "DeepseekForCausalLM",
        {**SOFTMAX, "model.qk_norm": "none", "shared": "plain"},
        {**TOP_K, "num_experts": "n_routed_experts", "num_shared": "n_shared_experts"},
        ("first_k_dense_replace", "first"),
        {**SILU, **NO_BIAS, "moe_layer_freq": 1, "scoring_func": "softmax", "rope_scaling": None},
        _deepseek,
    ),
)


def fitting(facts: Facts) -> Architecture:
    """The architecture that computes what a model with these facts does.

    Raises:
        UserError: there is none; names what of the nearest one differs.
    """
    misfits = {number: each.misfits(facts) for number, each in enumerate(ARCHITECTURES)}
    nearest = min(misfits, key=lambda number: len(misfits[number]))
    if not misfits[nearest]:
        return ARCHITECTURES[nearest]
    what = ", ".join(
        f"{key}={facts.get(key)} ({has} there)" for key, has in sorted(misfits[nearest].items())
    )
    name = ARCHITECTURES[nearest].name
    raise UserError(
        "no architecture of transformers computes this model; the nearest one, "
        f"{name}, differs in {what}"
    )


def named(config: dict[str, Any]) -> tuple[Architecture, Facts]:
    """The architecture of a config of theirs that ours can compute, and the facts.

    Raises:
        UserError: there is none.
    """
    kind = config.get("model_type")
    known = sorted({each.name for each in ARCHITECTURES})
    refusals = []
    for architecture in (each for each in ARCHITECTURES if each.name == kind):
        try:
            return architecture, architecture.facts(config)
        except UserError as error:
            refusals.append(error)
    raise (
        refusals[-1]
        if refusals
        else UserError(f"model_type={kind}: cannot be imported (one of: {', '.join(known)})")
    )
