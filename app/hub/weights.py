"""Every tensor of theirs as a view of one of ours:
its values go out by reading the view, and in by writing it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from app.model.moe import MoE
from app.model.transformer import Transformer
from experts.contract import FeedForward, Routed

if TYPE_CHECKING:
    from app.hub.architecture import Architecture, Views

GATED = ("gate_proj", "up_proj", "down_proj")


def views(model: Transformer, architecture: "Architecture") -> "Views":
    """All tensors by their names on disk."""
    found = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
    }
    if not model.config.tie_embeddings:
        found["lm_head.weight"] = model.head.weight
    offset = model.balancer.offset()
    routed = 0
    for number, block in enumerate(model.blocks):
        attention: Any = block.attention
        ffn: Any = block.ffn
        query, key, value = attention.qkv.weight.split(attention.sizes)
        layer = {
            "input_layernorm": block.attention_norm,
            "post_attention_layernorm": block.ffn_norm,
            "self_attn.o_proj": attention.out,
            "self_attn.q_norm": attention.query_norm,
            "self_attn.k_norm": attention.key_norm,
        }
        inner = {
            f"{n}.weight": m.weight for n, m in layer.items() if not isinstance(m, nn.Identity)
        }
        inner |= {
            f"self_attn.{n}_proj.weight": w for n, w in (("q", query), ("k", key), ("v", value))
        }
        if attention.qkv.bias is not None:
            biases = attention.qkv.bias.split(attention.sizes)
            inner |= {f"self_attn.{n}_proj.bias": b for n, b in zip("qkv", biases, strict=True)}
        if isinstance(ffn, MoE):
            assert architecture.experts is not None
            inner |= architecture.experts(ffn, None if offset is None else offset[routed])
            routed += 1
        else:
            inner |= network(ffn.experts.common, "mlp.")
        found |= {
            f"model.layers.{number}.{name}": weight.detach() for name, weight in inner.items()
        }
    return {name: weight.detach() for name, weight in found.items()}


def network(ffn: FeedForward, prefix: str, names: tuple[str, str, str] = GATED) -> "Views":
    """One gated network."""
    gate, up = ffn.w_in.weight.chunk(2)
    return {
        f"{prefix}{name}.weight": w
        for name, w in zip(names, (gate, up, ffn.w_out.weight), strict=True)
    }


def each_expert(layer: MoE, prefix: str, names: tuple[str, str, str] = GATED) -> "Views":
    """The routed experts, each with a name of its own, and the router."""
    found = {f"{prefix}gate.weight": directions(layer)}
    stack = cast(Routed, layer.experts).routed
    for e, (w_in, w_out) in enumerate(zip(stack.w_in, stack.w_out, strict=True)):
        matrices = (*w_in.T.chunk(2), w_out.T)  # (F, D) twice, (D, F)
        found |= {
            f"{prefix}experts.{e}.{n}.weight": w for n, w in zip(names, matrices, strict=True)
        }
    return found


def directions(layer: MoE) -> Tensor:
    """The rows (E, D) of a linear router."""
    score: Any = layer.router.score
    return score.proj.weight


@torch.no_grad()
def read_from(model: Transformer, architecture: "Architecture") -> dict[str, Tensor]:
    """Copies of all tensors of theirs."""
    return {name: view.clone().contiguous() for name, view in views(model, architecture).items()}


@torch.no_grad()
def write_into(
    model: Transformer, architecture: "Architecture", tensors: Mapping[str, Tensor]
) -> list[str]:
    """Puts all tensors of theirs into a model;
    returns what of them has no place, or another size, or is missing.
    """
    places = views(model, architecture)
    wrong = [f"{name} is missing" for name in sorted(places.keys() - tensors.keys())]
    wrong += [
        f"{name} is unknown"
        for name in sorted(tensors.keys() - places.keys())
        if tensors[name].numel()
    ]
    for name in places.keys() & tensors.keys():
        place = places[name]
        given = tensors[name]
        if given.numel() != place.numel() or given.squeeze().shape != place.squeeze().shape:
            wrong.append(f"{name} is {tuple(given.shape)} and must be {tuple(place.shape)}")
        else:
            place.copy_(given.view(place.shape))
    return wrong
