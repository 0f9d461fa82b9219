"""From the specification of a model to the model.

Nothing here needs Lightning, which takes longer to import than a model to build.
"""

import logging
from collections.abc import Sequence
from functools import cache

from torch import nn

from app.model.config import ModelConfig
from app.model.ensemble import Ensemble
from app.model.moe import MoE, Unrouted
from app.model.spec import Config, ModelSpec, PartSpec, model_spec, ranged
from app.model.transformer import Transformer
from app.registry import UserError
from experts.contract import Experts
from experts.mixture import Mixture
from routers.balancer import Balancer
from routers.contract import Drop, Select, Sizes
from routers.router import Router

log = logging.getLogger(__name__)


def build_model(config: Config, vocab_size: int) -> Transformer:
    """Return the model of a composed config.

    Raises:
        UserError: A part or a value does not exist or does not fit.
    """
    return assemble(model_spec(config), vocab_size)


def assemble(spec: ModelSpec, vocab_size: int) -> Transformer:
    """Return the transformer with its routers, experts and balance terms.

    Args:
        spec: What the model is made of.
        vocab_size: Number of tokens of the tokenizer.

    Raises:
        UserError: A part or a value does not exist or does not fit.
    """
    model = spec.model
    vocab_size = _vocabulary(model, vocab_size)
    layouts = [_layout(spec, layer) for layer in range(model.num_layers)]
    sizes = sizes_of([layout for layout in layouts if layout.num_experts], model.dim, vocab_size)
    _check_layers(spec, sizes.num_layers)
    ffns: list[nn.Module] = []
    num_routed = 0
    for layout in layouts:
        if layout.num_experts:
            ffns.append(_moe(spec, sizes._replace(layer=num_routed), layout))
            num_routed += 1
        else:
            ffns.append(Unrouted(layout))
    balancer = build_balancer(spec, sizes)
    mixes_models = any(isinstance(layout, Mixture) and layout.on_model for layout in layouts)
    kind = Ensemble if mixes_models else Transformer
    return ranged("", lambda: kind(model, ffns, balancer, vocab_size))


def _moe(spec: ModelSpec, sizes: Sizes, layout: Experts) -> MoE:
    router = build_router(spec, sizes)
    if router.weigh.on_input and isinstance(layout, Mixture):
        raise UserError(
            f"experts.name={spec.experts.name}: mixes its experts in one, and this router weighs "
            "what each of them sees; set router/weigh=identity, or another that weighs what they "
            "return"
        )
    return MoE(router, layout)


def sizes_of(routed: Sequence[Experts], dim: int, vocab_size: int) -> Sizes:
    """Return what the parts of routers are built from.

    Args:
        routed: Layouts of all MoE layers, which are alike.
        dim: Width of the model.
        vocab_size: Number of tokens.
    """
    if not routed:
        return Sizes(dim, 0, 0, 0, vocab_size)
    first = routed[0]
    return Sizes(
        dim,
        first.num_experts,
        first.top_k,
        len(routed),
        vocab_size,
        free=first.free,
        null=first.null,
    )


def build_router(spec: ModelSpec, sizes: Sizes) -> Router:
    """Return the router of one MoE layer.

    It has the parts of all layers, except for those that `router.layers` gives to this one.
    """
    chosen = dict(spec.router)
    for exception in spec.layers:
        if sizes.layer in exception.layers(sizes.num_layers):
            chosen.update(exception.parts)
    parts = {kind: part.with_k(sizes.top_k).build(sizes) for kind, part in chosen.items()}
    router = ranged("router", lambda: Router(**parts, sizes=sizes))
    for kind in ("select", "drop"):
        _refuse_look_ahead(parts[kind], chosen[kind], spec.allow_non_causal)
    return router


def build_balancer(spec: ModelSpec, sizes: Sizes) -> Balancer:
    """Return all chosen balance terms; none for a model without experts."""
    terms = spec.balance if sizes.num_experts else {}
    return ranged("", lambda: Balancer({name: term.build(sizes) for name, term in terms.items()}))


def _check_layers(spec: ModelSpec, num_layers: int) -> None:
    """Check that each entry of `router.layers` names a layer that exists."""
    for exception in spec.layers:
        if num_layers and not exception.layers(num_layers):
            raise UserError(
                f"{exception.key}.at={list(exception.at)}: names none of the {num_layers} MoE "
                "layers, which count from 0"
            )


def _layout(spec: ModelSpec, layer: int) -> Experts:
    """Return the experts of a layer, or one dense network, with the activation of the config."""
    model = spec.model
    part = spec.experts
    if not model.is_moe(layer):
        part = PartSpec("experts", "model", "dense", {"hidden_dim": model.hidden_dim})
    layout: Experts = part.build(model.dim)
    layout.activate(spec.activation.build())
    return layout


def _vocabulary(model: ModelConfig, vocab_size: int) -> int:
    """Return the model's own number of tokens where the config states one, else the tokenizer's."""
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size}: must be at least {vocab_size}, the tokenizer's; "
            "or null"
        )
    return model.vocab_size or vocab_size


def _refuse_look_ahead(part: Select | Drop, spec: PartSpec, allowed: bool) -> None:
    name = f"{spec.key}.name={spec.name}"
    if part.causal == "never" and not allowed:
        raise UserError(
            f"{name}: a token's choice depends on later tokens, so a language model would see its "
            "targets; set allow_non_causal=true to train it all the same"
        )
    if part.causal == "eval":
        _warn_of_look_ahead(name)


@cache
def _warn_of_look_ahead(part: str) -> None:
    """Warn once for all layers."""
    log.warning(f"{part}: looks at later tokens in training (not in evaluation)")
