"""Floating-point operations of a forward pass, per token.

A plain matrix product costs 2 FLOPs per parameter. Other computations, such as a router with a
state across layers or a layout that uses a matrix twice, run on the meta device, where nothing is
computed, under torch's counter.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from app.model.block import Block
from app.model.moe import MoE, Unrouted
from app.model.transformer import Transformer
from experts.contract import Experts
from experts.low_rank import skilled
from experts.mixture import Mixture
from routers.contract import Context, Score

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)
# A part is counted with this many tokens and with twice as many: FLOPs that do not grow are not
# per-token work.
TOKENS = 64


def forward_flops(model: Transformer, attended: float) -> float:
    """Return the FLOPs per token of a forward pass in training.

    Args:
        model: May be on the meta device.
        attended: Mean number of positions that a token attends to.
    """
    config = model.config
    # of a layer: products with keys and with values
    attention = 4 * config.num_heads * config.head_width * attended
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    flops = 2.0 * model.head.weight.numel() + router_flops(model)
    for block in blocks:
        flops += attention + 2 * _matrices(block.attention) + _ffn_flops(block.ffn, config.dim)
        flops += _repeated_flops(block, attention)
    return flops


def router_flops(model: Transformer) -> float:
    """Return the router FLOPs per token over all MoE layers, counting every evaluation."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    scores = [_on_meta(layer.router.score) for layer in layers]
    shared = None if model.shared_score is None else _on_meta(model.shared_score)
    once = _score_flops(scores, shared, model.config.dim, TOKENS)
    twice = _score_flops(scores, shared, model.config.dim, 2 * TOKENS)
    flops = 0.0
    for layer, score, first, second in zip(layers, scores, once, twice, strict=True):
        if first is None or second is None:
            per_token = 2.0 * _matrices(score)
        else:
            per_token = (second - first) / TOKENS
        # A mixture of whole models evaluates its routers in every pass.
        mixture = layer.experts
        passes = mixture.passes if isinstance(mixture, Mixture) and mixture.on_model else 1
        flops += passes * per_token
    return flops


def _score_flops(
    scores: list[Score], shared: nn.Module | None, dim: int, num_tokens: int
) -> list[int | None]:
    """Return the FLOPs that torch counts in each layer's score;
    None if it does not run on the meta device.
    """
    x = torch.empty(num_tokens, dim, device="meta")
    ids = torch.empty(num_tokens, dtype=torch.int64, device="meta")
    valid = torch.empty(1, num_tokens, dtype=torch.bool, device="meta")
    state: Tensor | None = None
    flops: list[int | None] = []
    for score in scores:
        context = Context(valid, ids, state, shared=shared, domain=ids)
        result, number = _counted(partial(score, x, context))
        state = None if result is None else result.state
        flops.append(number)
    return flops


def _ffn_flops(ffn: nn.Module, dim: int) -> float:
    """Return the FLOPs per token of a feed-forward part, without its router."""
    if isinstance(ffn, MoE) and not isinstance(ffn.experts, Mixture):
        routed = 2 * ffn.experts.active_params(ffn.router.top_k)
        return routed + _unrouted_flops(ffn.experts, dim)
    if isinstance(ffn, Unrouted):
        return _unrouted_flops(ffn.experts, dim)
    matrices = _matrices(ffn)
    if isinstance(ffn, MoE):
        matrices -= _matrices(ffn.router)
    return 2 * matrices


def _unrouted_flops(experts: Experts, dim: int) -> float:
    """Return the FLOPs per token of the shared parts of a layout, which run for every token."""
    layout = _on_meta(experts)

    def compute(num_tokens: int) -> None:
        x = torch.empty(num_tokens, dim, device="meta")
        layout.shared(x)
        if layout.num_experts:
            layout.leave(torch.empty_like(layout.enter(x)), x)

    _, once = _counted(partial(compute, TOKENS))
    _, twice = _counted(partial(compute, 2 * TOKENS))
    if once is None or twice is None:
        return 2 * (_matrices(experts) - sum(experts.expert_params()))
    return (twice - once) / TOKENS


def _repeated_flops(block: Block, attention: float) -> float:
    """Return the FLOPs per token of the additional passes of a mixture of outputs in a block."""
    if not (isinstance(block.ffn, MoE) and isinstance(block.ffn.experts, Mixture)):
        return 0
    mixture = block.ffn.experts
    # The networks that run again in each pass: those with skills, or the whole model.
    networks = [
        network for network in (block.attention, mixture) if mixture.on_model or skilled(network)
    ]
    per_pass = 2.0 * sum(_matrices(network) for network in networks)
    if block.attention in networks:
        per_pass += attention
    repeated = (mixture.passes - 1) * per_pass
    if repeated and not mixture.on_model:
        # The first pass is without experts.
        for network in networks:
            for layer in skilled(network):
                repeated -= 2 * sum(factor.numel() for factor in layer.settled())
    return repeated


def _counted(compute: Callable[[], T]) -> tuple[T | None, int | None]:
    """Return the result and the FLOPs of a computation on the meta device;
    None for both if it cannot run there.
    """
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            result = compute()
    # the part reads values, which meta tensors do not have
    except (NotImplementedError, RuntimeError):
        return None, None
    return result, counter.get_total_flops()


def _on_meta(module: Module) -> Module:
    """Return a copy of a module with its parameters and buffers on the meta device."""
    tensors: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach().to("meta"), False) for p in module.parameters()
    }
    tensors |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, tensors)


def _matrices(module: nn.Module) -> int:
    """Return the number of parameters in matrices."""
    return sum(p.numel() for p in module.parameters() if p.dim() >= 2)
