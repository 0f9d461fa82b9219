"""The pairs of parts that cannot go together, found by trying each."""

import itertools
from collections.abc import Iterator

import torch

from app.config.parts import SIZES, build_part, router_of
from app.registry import UserError, names
from routers.balancer import Balancer
from routers.contract import Context

BESIDE: tuple[dict[str, str | None], ...] = ({}, {"score": "noisy"}, {"select": "positive"})


def refused() -> Iterator[tuple[str, str, str]]:
    """Two parts and the reason: they go together neither beside plain
    top-k routing nor beside one of BESIDE.
    """
    plain = {
        "score": "linear",
        "select": "top_k",
        "weigh": "softmax",
        "drop": "none",
        "balance": None,
    }
    for one, other in itertools.combinations(plain, 2):
        for first, second in itertools.product(names(one), names(other)):
            reasons = [_reason({**plain, **others, one: first, other: second}) for others in BESIDE]
            if all(reasons):
                yield f"{one}={first}", f"{other}={second}", str(reasons[0])


def markdown() -> str:
    """The table for docs/refused.md."""
    rows = "".join(
        f"| `{first}` | `{second}` | {reason} |\n" for first, second, reason in refused()
    )
    return "| part | part | why not |\n| --- | --- | --- |\n" + rows


def _reason(parts: dict[str, str | None]) -> str:
    """Why these parts are refused; empty if they are not."""
    try:
        _trial(**parts)  # type: ignore[arg-type]
    except (UserError, ValueError) as error:
        return str(error)
    return ""


def _trial(score: str, select: str, weigh: str, drop: str, balance: str | None) -> None:
    made = router_of(score=score, select=select, weigh=weigh, drop=drop)
    shared = made.score.shared()
    valid = torch.ones(2, 8, dtype=torch.bool)
    tokens = torch.arange(valid.numel()) % SIZES.vocab_size
    routing = made(
        torch.randn(valid.numel(), SIZES.dim),
        Context(valid, tokens, shared=shared, domain=tokens % 2),
    )
    if balance is not None:
        beside = (
            {} if made.select.limited else {"relu_lambda": build_part("balance", "relu_lambda")}
        )
        balancer = Balancer(beside | {balance: build_part("balance", balance)})
        balancer.check(made.score, made.select)
        balancer.losses([routing, routing], None)
