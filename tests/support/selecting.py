"""What the tests of the selections share."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from app.registry import find
from routers.contract import Activated, Context, Select, Sizes

SIZES = Sizes(dim=8, num_experts=6, top_k=2, num_layers=1, vocab_size=16)
CONF = Path(__file__).parents[2] / "conf" / "router" / "select"
# 6 experts; without a draw
OVERRIDES = {"group_limited": {"groups": 3, "limit": 2}, "sparsemixer": {"eps": 0.0}}
Pairs = set[tuple[int, int]]


def build(name: str, sizes: Sizes = SIZES, **changed: Any) -> Select:
    """The selection at the values of its YAML."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(values, dict)
    values = {**values, **OVERRIDES.get(name, {}), **changed}
    values.pop("name")
    if values.get("k", 0) is None:
        values["k"] = sizes.top_k
    if "start" in values:
        values |= {"start": values["k"], "steps": 1}  # no growth
    if values.get("groups"):
        values["groups"] = min(values["groups"], sizes.num_experts)
    return find("select", name)(sizes, **values)


def probabilities(*shape: int) -> Tensor:
    """Scores (..., E) of random tokens, without ties."""
    return torch.randn(*shape, SIZES.num_experts).softmax(-1)


def every(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def pairs(
    select: Select, choice: Tensor, valid: Tensor | None = None, scores: Tensor | None = None
) -> Pairs:
    """The chosen (token, expert) of valid tokens, as the router sees them; each at most once."""
    num_tokens, num_experts = choice.shape
    valid = every(1, num_tokens) if valid is None else valid
    given = choice.clone()
    scores = choice if scores is None else scores
    logits = choice if select.by == "logits" else scores
    activated = Activated(
        logits,
        scores,
        scores.clamp_min(0).log(),
        scores / scores.sum(-1, keepdim=True).clamp_min(1e-20),
    )
    token, expert = select(activated, choice, Context(valid, seed=3))
    assert torch.equal(given, choice), "a selection does not change its input"
    assert (
        token.shape == expert.shape == (len(token),) and token.dtype == expert.dtype == torch.int64
    )
    assert ((token >= 0) & (token < num_tokens)).all() and (
        (expert >= 0) & (expert <= num_experts)
    ).all()
    assert token.equal(token.sort().values), "assignments stand in the order of their tokens"
    forbidden = choice == -torch.inf
    chosen = [
        (t, e)
        for t, e in zip(token.tolist(), expert.tolist(), strict=True)
        if e < num_experts and valid.flatten()[t] and not forbidden[t, e]
    ]
    assert len(chosen) == len(set(chosen)), "a pair was chosen twice"
    return set(chosen)
