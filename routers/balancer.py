"""All balance terms of a model together:
their losses add up, at most one of them offsets the choice.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from app.registry import find, names, require
from routers.contract import Balance, Routing, Score, Select

Observed = dict[str, Tensor]


class Balancer(nn.Module):
    """The model owns one; the training module asks it for losses and tells it what happened.

    Raises:
        ValueError: two terms offset the choice.
    """

    def __init__(self, terms: Mapping[str, Balance]) -> None:
        super().__init__()
        steering = [name for name, term in terms.items() if term.offset() is not None]
        require("balance", steering, len(steering) <= 1, "only one term may offset the choice")
        self.terms = nn.ModuleDict(terms)

    def check(self, score: Score, select: Select) -> None:
        """Whether a router's parts give every term what it needs, and the terms a selection what it
        needs.

        Raises:
            ValueError: they do not.
        """
        for name, term in self._each().items():
            try:
                term.check(score, select)
            except ValueError as error:
                raise ValueError(f"balance.{name}.{error}") from error
        if not (select.limited or any(term.holds_k for term in self._each().values())):
            registered: dict[str, Any] = {name: find("balance", name) for name in names("balance")}
            holders = " or ".join(name for name, term in registered.items() if term.holds_k)
            raise ValueError(
                f"balance={list(self._each())}: none of these terms holds the number of experts "
                f"per token, which {type(select).__name__} leaves open; add {holders}"
            )

    def offset(self) -> Tensor | None:
        """(L, E) float32, or None if no term steers the choice."""
        for term in self._each().values():
            offset = term.offset()
            if offset is not None:
                return offset
        return None

    def losses(
        self, routings: Sequence[Routing], seen: Observed | None
    ) -> dict[str, tuple[Tensor, float]]:
        """Raw value and weight of every term that has a loss,
        for one micro-batch after those in `seen`.
        """
        losses = {}
        for name, term in self._each().items():
            raw = term.loss(routings, seen.get(name) if seen else None)
            if raw is not None:
                losses[name] = (raw, term.weight)
        return losses

    def weight(self, name: str) -> float:
        """Of a term's loss in the total."""
        return self._each()[name].weight

    def observe(self, routings: Sequence[Routing]) -> Observed:
        """What each term wants to know of one micro-batch;
        nothing of a term that keeps what it inherits.
        """
        observed = {}
        for name, term in self._each().items():
            if _has_own(term, "update") or _has_own(term, "observe"):
                observed[name] = term.observe(routings)
        return observed

    @property
    def controllers(self) -> list[str]:
        """The names of the terms that are updated after a step."""
        return [name for name, term in self._each().items() if _has_own(term, "update")]

    def update(self, totals: Observed, num_tokens: Tensor) -> None:
        """Once per optimizer step: totals of the controllers,
        summed over its micro-batches and ranks.
        """
        for name in self.controllers:
            self._each()[name].update(totals[name], num_tokens)

    def _each(self) -> dict[str, Balance]:
        return dict(self.terms.items())  # type: ignore[arg-type]


def _has_own(term: Balance, method: str) -> bool:
    return getattr(type(term), method) is not getattr(Balance, method)
