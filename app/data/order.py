"""Which training row comes when: a pure function of (seed, position), so a run goes on anywhere and
on any ranks.

Rows come in blocks. A block holds each domain's share, rounded so that the shares of all blocks
together stay exact, in an order drawn from (seed, block); inside a domain the rows are a
permutation drawn from (seed, domain, epoch).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.data.corpus import Row

BLOCK = 256  # rows


@dataclass(frozen=True)
class Order:
    """The endless order of the rows of all domains:
    `rows[d]` of them in domain d, in the shares of each phase.
    """

    rows: tuple[int, ...]
    # position where each phase begins; the first one at 0
    starts: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]  # of each phase
    seed: int

    @classmethod
    def of(
        cls, rows: Sequence[int], phases: Sequence[tuple[int, Sequence[float] | None]], seed: int
    ) -> "Order":
        """The order of phases (start, weights), weights None: by size;
        a domain without rows is left out.
        """
        starts, weights = zip(*phases, strict=True)
        shares = (
            tuple(
                float(weight) if count else 0.0
                for weight, count in zip(each or rows, rows, strict=True)
            )
            for each in weights
        )
        return cls(tuple(rows), tuple(starts), tuple(shares), seed)

    def __getitem__(self, position: int) -> Row:
        phase = bisect_right(self.starts, position) - 1
        block, place = divmod(position - self.starts[phase], BLOCK)
        domain, number = _block(self, phase, block)[place]
        epoch, nth = divmod(int(number), self.rows[domain])
        return Row(
            int(domain),
            int(_permutation((self.seed, 1, int(domain), epoch), self.rows[domain])[nth]),
        )

    def taken(self, count: int) -> list[int]:
        """How many of the first `count` rows are of each domain:
        `count` in all, none of them falling with it.
        """
        ends = [*self.starts[1:], count]
        parts = [
            _taken(weights, max(0, min(count, end) - start))
            for start, end, weights in zip(self.starts, ends, self.weights, strict=True)
        ]
        return [sum(numbers) for numbers in zip(*parts, strict=True)]


def _taken(weights: tuple[float, ...], count: int) -> list[int]:
    taken = []
    for share in _shares(weights):
        taken.append(int(share * count))
        count -= taken[-1]
    return taken


@lru_cache
def _shares(weights: tuple[float, ...]) -> list[Fraction]:
    """The share of each domain in what those before it leave;
    the last one takes all, so the sum is exact.
    """
    # 0.3 means 3/10 and not the nearest binary fraction. The limit keeps six digits of the smallest
    # weight, too.
    smallest = Fraction(min((weight for weight in weights if weight > 0), default=1.0))
    limit = 10**6 if smallest >= Fraction(1, 10**6) else math.ceil(10**6 / smallest)
    exact = [Fraction(weight).limit_denominator(limit) for weight in weights]
    return [weight / (sum(exact[place:]) or 1) for place, weight in enumerate(exact)]


@lru_cache(maxsize=4)
def _block(order: Order, phase: int, block: int) -> NDArray[np.int64]:
    """(BLOCK, 2): the domain of each row and how many rows of that domain came before it in the
    whole order.

    The last block of a phase is cut where the next one begins.
    """
    first = order.starts[phase] + block * BLOCK
    last = min([first + BLOCK, *order.starts[phase + 1 : phase + 2]])
    before = order.taken(first)
    after = order.taken(last)
    in_order = np.repeat(np.arange(len(before)), np.subtract(after, before))
    shuffled = in_order[_permutation((order.seed, 0, order.starts[phase] + block), last - first)]
    rows = np.stack([shuffled, np.zeros_like(shuffled)], axis=1)
    for domain, span in enumerate(zip(before, after, strict=True)):
        rows[shuffled == domain, 1] = range(*span)
    return rows


@lru_cache(maxsize=64)
def _permutation(key: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """Made of raw Philox output only, which NumPy keeps the same in every version."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(size).argsort(kind="stable")
