"""Routings that are given, not computed."""

import torch
from torch import Tensor

from app.config.parts import defaults
from app.registry import find
from routers.contract import Balance, Routing, Sizes


def sizes(num_experts: int, top_k: int) -> Sizes:
    return Sizes(dim=8, num_experts=num_experts, top_k=top_k, num_layers=2, vocab_size=8)


def term(name: str, size: Sizes, **knobs: object) -> Balance:
    values = {key: value for key, value in defaults("balance", name).items() if key != "name"}
    return find("balance", name)(size, **values | knobs)


def routing(logits: Tensor, expert: Tensor, valid: Tensor | None = None, **more: Tensor) -> Routing:
    """Softmax scores of logits (B, S, E); expert (T, K)."""
    rows, length, num_experts = logits.shape
    valid = torch.ones(rows, length, dtype=torch.bool) if valid is None else valid
    logits = logits.flatten(0, 1)
    scores = logits.softmax(-1)
    token = torch.arange(len(logits)).repeat_interleave(expert.size(1))
    expert = expert.flatten().masked_fill(~valid.flatten()[token], num_experts)
    gate = scores[token, expert.clamp(max=num_experts - 1)] * (expert < num_experts)
    kept = expert < num_experts
    top_k = len(token) // len(logits)
    return Routing(token, expert, gate, kept, logits, scores, scores, top_k, valid, None, **more)


def uniform(num_experts: int, top_k: int, rows: int = 2) -> Routing:
    """Every expert equally often in every sequence,
    equal logits (with a little noise that decides the top-k).
    """
    token = torch.arange(rows * num_experts)[:, None]
    expert = (token + torch.arange(top_k)) % num_experts
    logits = torch.zeros(rows * num_experts, num_experts).scatter(1, expert, 1e-7)
    return routing(logits.view(rows, num_experts, num_experts), expert)


def route(
    expert: Tensor,
    num_experts: int,
    logits: Tensor | None = None,
    kept: Tensor | None = None,
    valid: Tensor | None = None,
) -> Routing:
    """Tokens with experts (T, K), -1 for none, in one sequence;
    softmax scores of the logits, gates of 1/K.
    """
    num_tokens, k = expert.shape
    token = torch.arange(num_tokens).repeat_interleave(k)
    flat = expert.flatten().masked_fill(expert.flatten() < 0, num_experts)
    somebody = flat < num_experts
    logits = torch.zeros(num_tokens, num_experts) if logits is None else logits
    return Routing(
        token=token,
        expert=flat,
        gate=somebody / k,
        kept=somebody if kept is None else kept & somebody,
        logits=logits,
        scores=logits.softmax(-1),
        probabilities=logits.softmax(-1),
        top_k=k,
        valid=torch.ones(1, num_tokens, dtype=torch.bool) if valid is None else valid,
        state=None,
    )
