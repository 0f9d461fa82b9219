"""One small model of ours for every architecture of theirs,
and the folder that is written of it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.config.compose import composed
from app.hub.architecture import Architecture
from app.hub.architectures import fitting
from app.hub.facts import facts_of
from app.hub.weights import read_from
from app.hub.write import write_folder
from app.model.assemble import build_model
from app.model.transformer import Transformer

VOCAB = 61
ROUTED = ("experts=coarse", "experts.num_experts=6", "experts.top_k=2", "experts.hidden_dim=24")
SHARED = (
    "experts=deepseek",
    "experts.segments=1",
    "experts.num_experts=8",
    "experts.top_k=4",
    "experts.num_shared=2",
    "experts.hidden_dim=24",
)
BIAS = ("router=sigmoid", "balance=loss_free")
GROUPS = (
    "router=deepseek_v3",
    "router.select.groups=3",
    "router.select.limit=2",
    "balance=loss_free",
)
GQA = "model.num_kv_heads=1"
HEAD = "model.head_dim=12"
CASES = {
    "llama": ("experts=dense", GQA, HEAD),
    "llama, tied": ("experts=dense", "model.tie_embeddings=true"),
    "qwen3": ("experts=dense", "model.qk_norm=head", GQA, HEAD),
    "mixtral": ("router=mixtral", *ROUTED, GQA, HEAD),
    "mixtral, tied": (
        "router=mixtral",
        *ROUTED,
        "model.tie_embeddings=true",
        "model.rope_theta=500",
    ),
    "qwen2_moe": ("router=topk", "experts=fine_grained", GQA, "model.first_dense=1"),
    "qwen2_moe, normalised": ("router=mixtral", *ROUTED, "model.moe_layers=[0,2]"),
    "qwen2_moe, gated": ("router=topk", "experts=shared_gated", "experts.shared_dim=20"),
    "qwen2_moe, biased": (
        "router=topk",
        "experts=shared_gated",
        "experts.shared_dim=20",
        GQA,
        "model.qkv_bias=true",
    ),
    "olmoe": ("router=olmoe", *ROUTED, "model.qk_norm=all"),
    "olmoe, normalised": ("router=mixtral", *ROUTED, "model.qk_norm=all", GQA),
    "qwen3_moe": ("router=topk", *ROUTED, "model.qk_norm=head", GQA, HEAD, "model.moe_every=2"),
    "granitemoeshared": ("router=mixtral", *SHARED, GQA),
    "granitemoeshared, any width": (
        "router=mixtral",
        "experts=residual",
        "experts.dense_dim=28",
        "experts.top_k=2",
        "experts.coefficient=false",
    ),
    "glm4_moe": (*BIAS, *SHARED, "model.first_dense=1", GQA, HEAD),
    "glm4_moe, groups": (*GROUPS, *ROUTED, "model.qk_norm=head"),
    "glm4_moe, groups and shared": (*GROUPS, *SHARED),
    "glm4_moe, no bias": ("router=sigmoid", "balance=aux", *ROUTED, "router.weigh.normalize=false"),
    "glm4_moe, biased": (*BIAS, *ROUTED, "model.qk_norm=head", GQA, "model.qkv_bias=true"),
    "minimax_m2": (*BIAS, *ROUTED, "model.qk_norm=all", GQA),
}

# comes back as another layout
DOUBLED = {
    "qwen2_moe, a shared expert without a gate": ("router=topk", *SHARED, "model.first_dense=1")
}


def config_of(*overrides: str) -> dict[str, Any]:
    return composed(["model=nano", "model.num_layers=3", "tokenizer=bytes", *overrides])


def model_of(config: dict[str, Any], seed: int = 0) -> Transformer:
    """With weights and biases that all matter."""
    torch.manual_seed(seed)
    model = build_model(config, VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        offset = model.balancer.offset()
        if offset is not None:
            offset.copy_(torch.randn_like(offset) * 0.3)
    return model


def written(folder: Path, config: dict[str, Any], model: Transformer) -> Architecture:
    """The folder without a tokenizer and a card."""
    facts = facts_of(config, model)
    architecture = fitting(facts)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    write_folder(
        folder,
        {"config.json": json.dumps(architecture.config(facts) | ends)},
        read_from(model, architecture),
    )
    return architecture


BEGIN = "<s>"


END = "</s>"


def add_tokenizer(folder: Path, begin: str | None = BEGIN, end: str = END) -> None:
    """Byte pairs of 40 letters, with two special tokens,
    whose ids are below the 61 of the model.
    """
    letters = sorted(
        {*pre_tokenizers.ByteLevel.alphabet()} & {*"abcdefghijklmnopqrstuvwxyz'.,", "Ġ", "Ċ"}
    )
    model = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([token for token in (begin, end) if token is not None])
    model.add_tokens(
        [f"filler{number}" for number in range(61 - model.get_vocab_size(with_added_tokens=True))]
    )
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": begin, "eos_token": end})
    )


OVERRIDES = ("data=text", "data.path=t.txt", "data.seq_len=16", "data.val_rows=4", "callbacks=off")
