"""Arithmetic on assignments (token, expert), the flat list of who computes what.
Letters as in `routers.contract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from routers.contract import Routing


def expert_load(routings: Sequence[Routing]) -> Tensor:
    """Assignments per layer and expert (L, E) float32, before the drop, without padding."""
    return torch.stack([count(r.expert, r.logits.size(1)) for r in routings])


def gates(routing: Routing) -> Tensor:
    """The gate of every token and expert (T, E), 0 where it was not chosen."""
    num_tokens, num_experts = routing.logits.shape
    index = routing.token * (num_experts + 1) + routing.expert
    flat = routing.gate.new_zeros(num_tokens * (num_experts + 1)).scatter(0, index, routing.gate)
    return flat.view(num_tokens, num_experts + 1)[:, :num_experts]


def acting(routing: Routing, alone: int | None) -> Routing:
    """What is computed: a routing without what was dropped, or the expert `alone` for every token,
    none if it is E.
    """
    valid = routing.valid.flatten()
    num_experts = routing.logits.size(1)
    if alone is None:
        return routing._replace(expert=routing.expert.masked_fill(~routing.kept, num_experts))
    kept = valid & (alone < num_experts)
    expert = torch.full_like(valid, alone, dtype=torch.int64).masked_fill(~kept, num_experts)
    token = torch.arange(len(valid), device=valid.device)
    return routing._replace(token=token, expert=expert, gate=kept.float(), kept=kept)


def importance(routings: Sequence[Routing]) -> Tensor:
    """Sum of the gates per layer and expert (L, E) float32, differentiable:
    what an expert weighs, beside its load.
    """
    sums = []
    for routing in routings:
        num_experts = routing.logits.size(1)
        # One more place takes what is not assigned.
        zeros = routing.gate.new_zeros(num_experts + 1)
        sums.append(zeros.index_add(0, routing.expert, routing.gate)[:num_experts])
    return torch.stack(sums)


def sequence_load(routing: Routing) -> Tensor:
    """Assignments per sequence and expert (B, E) float32, before the drop, without padding."""
    num_sequences, length = routing.valid.shape
    num_experts = routing.logits.size(1)
    pairs = num_sequences * num_experts
    # (A,): (sequence, expert) as one number
    pair = routing.token // length * num_experts + routing.expert
    # the unassigned as one more, not counted
    pair = pair.masked_fill(routing.expert == num_experts, pairs)
    return count(pair, pairs).view(num_sequences, num_experts)


def count(expert: Tensor, num_experts: int) -> Tensor:
    """How often each expert occurs in expert (A,): (E,) float32; E, unassigned, is not counted."""
    ones = torch.ones_like(expert, dtype=torch.float32)
    return ones.new_zeros(num_experts + 1).scatter_add_(0, expert, ones)[:num_experts]


def experts_per_token(routing: Routing) -> Tensor:
    """How many experts each token has (T,) int64, before the drop; 0 on padding."""
    served = (routing.expert < routing.logits.size(1)).long()
    return served.new_zeros(len(routing.logits)).scatter_add_(0, routing.token, served)


def assigned(values: Tensor, token: Tensor, expert: Tensor, missing: float = 0.0) -> Tensor:
    """Values (T, E) at the assignments: (A,), `missing` where expert is E."""
    num_experts = values.size(1)
    index = token * num_experts + expert.clamp(max=num_experts - 1)
    return values.flatten().gather(0, index).masked_fill(expert == num_experts, missing)


def per_token(values: Tensor, token: Tensor, num_tokens: int) -> Tensor:
    """Sum of values (A,) over the assignments of each token,
    given back to each assignment: (A,).
    """
    return values.new_zeros(num_tokens).index_add(0, token, values)[token]


def softmax_per_token(values: Tensor, token: Tensor, num_tokens: int) -> Tensor:
    """Softmax of values (A,) over the assignments of each token: (A,); 0 where a value is -inf."""
    limits = torch.finfo(values.dtype)
    # The largest value of a token becomes 0, so its exponential is 1 and nothing underflows.
    largest = values.new_full((num_tokens,), limits.min)
    largest = largest.scatter_reduce(0, token, values.detach(), "amax")
    exp = (values - largest[token]).exp()
    return exp / per_token(exp, token, num_tokens).clamp_min(limits.tiny)


def rank_in_token(values: Tensor, token: Tensor, num_tokens: int) -> Tensor:
    """Place of each assignment among those of its token by descending values (A,):
    (A,) int64 from 0.
    """
    order = values.argsort(descending=True, stable=True)
    # by token, then by value
    order = order[token[order].argsort(stable=True)]
    number = token.new_zeros(num_tokens).scatter_add_(0, token, torch.ones_like(token))
    starts = number.cumsum(0) - number  # (T,): where the assignments of a token start in this order
    rank = torch.arange(len(token), device=token.device) - starts[token[order]]
    # back from this order to that of the assignments
    return torch.empty_like(token).scatter(0, order, rank)
