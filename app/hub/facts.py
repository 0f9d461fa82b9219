"""What a model of ours computes in evaluation, as plain values by name: what an architecture of
others must have, too.

Noise, drawn experts and full experts are of training only, so a part that differs from another one
only there counts as that one.
"""

from collections.abc import Mapping
from typing import Any

from app.model.moe import MoE, Unrouted
from app.model.transformer import Transformer

Facts = dict[str, Any]
# parts that in evaluation are another one, and the knobs that they share with it
SAME = {
    ("score", "jitter"): ("linear", ("bias",)),
    ("score", "noisy"): ("linear", ()),
    ("select", "base_layer"): ("top_k", ()),
    ("select", "growing_k"): ("top_k", ()),
    ("select", "sinkhorn"): ("top_k", ()),
}
SHARED = {
    "coarse": "none",
    "fine_grained": "none",
    "deepseek": "plain",
    "shared_gated": "gated",
    "residual": "plain",
}
# of knobs that only some parts have
DEFAULTS = {"router.score.bias": False}


def facts_of(config: Mapping[str, Any], model: Transformer) -> Facts:
    """Of a config and its model; names are those of the config where it has them."""
    sizes = model.config
    own = {
        name: getattr(sizes, name)
        for name in (
            "dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "norm_eps",
            "rope_theta",
            "qk_norm",
            "qkv_bias",
            "tie_embeddings",
        )
    }
    facts = {f"model.{name}": value for name, value in own.items()}
    facts |= {
        "model.head_dim": sizes.head_width,
        "model.vocab_size": model.embedding.num_embeddings,
    }
    facts |= {"model.attention_scale": sizes.head_width**-0.5}
    facts |= {"data.seq_len": config["data"]["seq_len"], **_dense(config, model)}
    return facts | (_routed(config, model) if model.num_experts else {"experts": "none"})


def _dense(config: Mapping[str, Any], model: Transformer) -> Facts:
    """Of the layers without a router."""
    ffns: dict[int, Any] = {
        i: block.ffn for i, block in enumerate(model.blocks) if isinstance(block.ffn, Unrouted)
    }
    widths = {ffn.experts.common.shape[1] for ffn in ffns.values()}
    width = widths.pop() if widths else model.config.hidden_dim
    facts = {"dense_layers": list(ffns), "model.hidden_dim": width}
    activation = config["experts"].get("activation", {"name": "swiglu"})
    facts["experts/activation"] = activation["name"]
    return facts | ({"experts.hidden_dim": sorted(widths)} if widths else {})  # of several widths


def _routed(config: Mapping[str, Any], model: Transformer) -> Facts:
    """Of the layers with one."""
    layer: Any = next(block.ffn for block in model.blocks if isinstance(block.ffn, MoE))
    router = layer.router
    layout = layer.experts
    entry = config["experts"]
    kind = "routed" if entry["name"] in SHARED else entry["name"]
    facts: Facts = {"experts": kind, "num_experts": layout.num_experts}
    facts |= {"top_k": router.top_k, "expert_dim": getattr(layout, "hidden_dim", None)}
    common = getattr(layout, "common", None)
    facts |= {"shared": "none" if common is None else SHARED.get(entry["name"], "plain")}
    facts |= {"shared_dim": 0 if common is None else common.shape[1]}
    if facts["expert_dim"] and facts["shared_dim"] % facts["expert_dim"] == 0:
        facts["num_shared"] = facts["shared_dim"] // facts["expert_dim"]
    if entry.get("coefficient") and common is not None:
        facts["experts.coefficient"] = True
    for kind in ("score", "weigh", "select"):
        facts |= _part(kind, config["router"][kind])
    facts["router/drop"] = (
        "none"
        if (router.drop.eval_scope or router.drop.scope) == "token"
        else config["router"]["drop"]["name"]
    )
    if (groups := facts.get("router.select.groups")) is not None:
        facts["even groups of several experts"] = (
            layout.num_experts % groups == 0 and layout.num_experts > groups
        )
    if config["router"].get("layers"):
        facts["router.layers"] = list(config["router"]["layers"])
    steering = [name for name, term in model.balancer.terms.items() if term.offset() is not None]  # type: ignore[operator]
    return facts | {"balance offset": bool(steering)}


def _part(kind: str, entry: Mapping[str, Any]) -> Facts:
    """Of one part of the router; `k` is `top_k`."""
    name, kept = SAME.get((kind, entry["name"]), (entry["name"], tuple(entry)))
    knobs = {
        f"router.{kind}.{key}": entry[key]
        for key in kept
        if key in entry and key not in ("name", "k")
    }
    absent = {key: value for key, value in DEFAULTS.items() if key.startswith(f"router.{kind}.")}
    return {f"router/{kind}": name, **absent, **knobs}
