"""The architectures of `transformers` that compute what some of our models do.

Mixtral (arXiv 2401.04088), OLMoE (2409.02060), Qwen2-MoE (2407.10671), Qwen3 and Qwen3-MoE
(2505.09388), GraniteMoe with shared experts (IBM 2024), DeepSeekMoE (2401.06066), GLM-4.5
(2508.06471), MiniMax-M2 (2025), Llama (2302.13971). What each computes is read off its modelling
code there, or off its paper; that ours gives the same logits is tested for each.
"""

from collections.abc import Callable
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
ExpertViews = Callable[[MoE, Tensor | None], Views]


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
    """It always has a shared expert: one of width 0 where ours has none."""
    common: Any = getattr(layer.experts, "common", None)
    if common is None:
        shared = _empty(layer, "mlp.shared_experts.")
    else:
        shared = network(common, "mlp.shared_experts.")
    bias = {"mlp.gate.e_score_correction_bias": _bias(layer, offset)}
    return {**_plain(layer, offset), **shared, **bias}


def _deepseek(layer: MoE, offset: Tensor | None) -> Views:
    common: Any = getattr(layer.experts, "common", None)
    shared = {} if common is None else network(common, "mlp.shared_experts.")
    return {**_plain(layer, offset), **shared}


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
    """Return a network of width 0."""
    none = directions(layer)[:0]
    gate, up, down = GATED
    return {
        f"{prefix}{gate}.weight": none,
        f"{prefix}{up}.weight": none,
        f"{prefix}{down}.weight": none.T,
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


LLAMA = Architecture(
    name="llama",
    cls="LlamaForCausalLM",
    needs={**DENSE, "model.qk_norm": "none"},
    keys={"model.hidden_dim": "intermediate_size"},
    constants={**SILU, **NO_BIAS, "mlp_bias": False},
)
QWEN3 = Architecture(
    name="qwen3",
    cls="Qwen3ForCausalLM",
    needs={**DENSE, "model.qk_norm": "head"},
    keys={"model.hidden_dim": "intermediate_size"},
    constants={**SILU, **NO_BIAS, "use_sliding_window": False},
)
MIXTRAL = Architecture(
    name="mixtral",
    cls="MixtralForCausalLM",
    needs={
        **SOFTMAX,
        "model.qk_norm": "none",
        "router.weigh.normalize": True,
        "shared": "none",
    },
    keys=LOCAL,
    constants={**SILU, "sliding_window": None},
    experts=_mixtral,
)
OLMOE = Architecture(
    name="olmoe",
    cls="OlmoeForCausalLM",
    needs={**SOFTMAX, "model.qk_norm": "all", "shared": "none"},
    keys={**LOCAL, "num_experts": "num_experts", "router.weigh.normalize": "norm_topk_prob"},
    constants={**SILU, **NO_BIAS, "clip_qkv": None},
    experts=_plain,
)
QWEN3_MOE = Architecture(
    name="qwen3_moe",
    cls="Qwen3MoeForCausalLM",
    needs={**SOFTMAX, "model.qk_norm": "head", "shared": "none"},
    keys=TOP_K,
    dense=("mlp_only_layers", "list"),
    constants={**SILU, **NO_BIAS, "decoder_sparse_step": 1, "use_sliding_window": False},
    experts=_plain,
)
GRANITE = Architecture(
    name="granitemoeshared",
    cls="GraniteMoeSharedForCausalLM",
    needs={
        **SOFTMAX,
        "model.qk_norm": "none",
        "router.weigh.normalize": True,
        "shared": "plain",
    },
    keys={
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
)
MINIMAX_M2 = Architecture(
    name="minimax_m2",
    cls="MiniMaxM2ForCausalLM",
    needs={
        **SIGMOID,
        "model.qk_norm": "all",
        "router/select": "top_k",
        "router.weigh.normalize": True,
        "router.weigh.scale": 1.0,
        "shared": "none",
    },
    keys={**LOCAL, "balance offset": ""},
    constants={**SILU, **WHOLE_HEADS},
    experts=_minimax,
)
# Not part of transformers: the code of DeepSeekMoE lies beside its weights.
DEEPSEEK = Architecture(
    name="deepseek",
    cls="DeepseekForCausalLM",
    needs={**SOFTMAX, "model.qk_norm": "none", "shared": "plain"},
    keys={**TOP_K, "num_experts": "n_routed_experts", "num_shared": "n_shared_experts"},
    dense=("first_k_dense_replace", "first"),
    constants={
        **SILU,
        **NO_BIAS,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "rope_scaling": None,
    },
    experts=_deepseek,
)


def _qwen2_moe(shared: str, experts: ExpertViews) -> Architecture:
    """Return Qwen2-MoE for a model whose shared expert is `none`, `gated` or `plain`."""
    keys = {**TOP_K, "model.qkv_bias": "qkv_bias"}
    constants = {**SILU, "decoder_sparse_step": 1, "use_sliding_window": False}
    if shared == "none":
        # It always has a shared expert; here one of width 0.
        constants["shared_expert_intermediate_size"] = 0
    else:
        keys["shared_dim"] = "shared_expert_intermediate_size"
    return Architecture(
        name="qwen2_moe",
        cls="Qwen2MoeForCausalLM",
        needs={**SOFTMAX, "model.qk_norm": "none", "shared": shared},
        keys=keys,
        dense=("mlp_only_layers", "list"),
        constants=constants,
        experts=experts,
    )


def _glm4_moe(norm: str, shared: str, select: str) -> Architecture:
    """Return GLM-4.5 for one norm of queries and keys, shared expert, and selection."""
    needs = {**SIGMOID, "model.qk_norm": norm, "shared": shared, "router/select": select}
    keys = {**GLM, "model.qkv_bias": "attention_bias", "balance offset": ""}
    constants = {
        **SILU,
        **WHOLE_HEADS,
        "use_qk_norm": norm == "head",
        "num_nextn_predict_layers": 0,
    }
    if select == "top_k":
        # Its selection is by groups; one group of all experts is none.
        constants["n_group"] = 1
        constants["topk_group"] = 1
    else:
        needs["router.select.score"] = "top2"
        needs["even groups of several experts"] = True
        keys["router.select.groups"] = "n_group"
        keys["router.select.limit"] = "topk_group"
    return Architecture(
        name="glm4_moe",
        cls="Glm4MoeForCausalLM",
        needs=needs,
        keys=keys,
        dense=("first_k_dense_replace", "first"),
        constants=constants,
        experts=_glm,
    )


# In the order of preference: a model goes out as the first one that computes it.
ARCHITECTURES = (
    LLAMA,
    QWEN3,
    MIXTRAL,
    _qwen2_moe("none", _qwen2),
    _qwen2_moe("gated", _qwen2),
    OLMOE,
    QWEN3_MOE,
    GRANITE,
    _qwen2_moe("plain", _qwen2_halved),
    _glm4_moe("none", "plain", "top_k"),
    _glm4_moe("none", "plain", "group_limited"),
    _glm4_moe("none", "none", "top_k"),
    _glm4_moe("none", "none", "group_limited"),
    _glm4_moe("head", "plain", "top_k"),
    _glm4_moe("head", "plain", "group_limited"),
    _glm4_moe("head", "none", "top_k"),
    _glm4_moe("head", "none", "group_limited"),
    MINIMAX_M2,
    DEEPSEEK,
)


def fitting(facts: Facts) -> Architecture:
    """Return the architecture that computes what a model with these facts does.

    Raises:
        UserError: There is none; names what of the nearest one differs.
    """
    nearest = min(ARCHITECTURES, key=lambda architecture: len(architecture.misfits(facts)))
    misfits = nearest.misfits(facts)
    if not misfits:
        return nearest
    what = ", ".join(
        f"{key}={facts.get(key)} ({has} there)" for key, has in sorted(misfits.items())
    )
    raise UserError(
        f"no architecture of transformers computes this model; the nearest one, {nearest.name}, "
        f"differs in {what}"
    )


def named(config: dict[str, Any]) -> tuple[Architecture, Facts]:
    """Return the architecture of a config of transformers that ours can compute, and the facts.

    Raises:
        UserError: There is none.
    """
    kind = config.get("model_type")
    refusal = None
    for architecture in ARCHITECTURES:
        if architecture.name != kind:
            continue
        try:
            return architecture, architecture.facts(config)
        except UserError as error:
            refusal = error
    if refusal is not None:
        raise refusal
    known = ", ".join(sorted({architecture.name for architecture in ARCHITECTURES}))
    raise UserError(f"model_type={kind}: cannot be imported (one of: {known})")
