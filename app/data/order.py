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
    """The endless order of the training rows of all domains.

    Attributes:
        rows: Number of rows of each domain.
        starts: Position at which each phase begins; the first begins at 0.
        weights: For each phase, the weight of each domain, on any scale.
        seed: Seed of all shuffles.
    """

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    seed: int

    @classmethod
    def of(
        cls, rows: Sequence[int], phases: Sequence[tuple[int, Sequence[float] | None]], seed: int
    ) -> "Order":
        """Return the order of phases, each given by its start and its weights.

        Without weights, a phase reads each domain in proportion to its size. A domain without rows
        gets weight 0.
        """
        starts = tuple(start for start, _ in phases)
        weights = tuple(_usable_weights(given or rows, rows) for _, given in phases)
        return cls(tuple(rows), starts, weights, seed)

    def __getitem__(self, position: int) -> Row:
        phase = bisect_right(self.starts, position) - 1
        block, place = divmod(position - self.starts[phase], BLOCK)
        domain, number = map(int, _block(self, phase, block)[place])
        # A domain is read over and over, in each epoch in another order.
        size = self.rows[domain]
        epoch, nth = divmod(number, size)
        shuffled = _permutation((self.seed, 1, domain, epoch), size)
        return Row(domain, int(shuffled[nth]))

    def taken(self, count: int) -> list[int]:
        """Return how many of the first `count` rows are of each domain.

        The numbers add up to `count`, and none of them falls as `count` rises.
        """
        totals = [0] * len(self.rows)
        ends = [*self.starts[1:], count]
        for start, end, weights in zip(self.starts, ends, self.weights, strict=True):
            in_phase = max(0, min(count, end) - start)
            for domain, number in enumerate(_taken(weights, in_phase)):
                totals[domain] += number
        return totals


def _usable_weights(weights: Sequence[float], rows: Sequence[int]) -> tuple[float, ...]:
    """Return the weights, with 0 for domains that have no rows."""
    return tuple(
        float(weight) if count else 0.0 for weight, count in zip(weights, rows, strict=True)
    )


def _taken(weights: tuple[float, ...], count: int) -> list[int]:
    """Return how many of the first `count` rows of a phase are of each domain."""
    taken = []
    for share in _shares_of_rest(weights):
        number = int(share * count)
        taken.append(number)
        count -= number
    return taken


@lru_cache
def _shares_of_rest(weights: tuple[float, ...]) -> list[Fraction]:
    """Return the share of each domain in the rows that the domains before it leave.

    The last one takes all that is left, so the sum is exact.
    """
    # 0.3 means 3/10 and not the nearest binary fraction. The limit keeps six digits of the smallest
    # weight, too.
    smallest = Fraction(min((weight for weight in weights if weight > 0), default=1.0))
    limit = 10**6 if smallest >= Fraction(1, 10**6) else math.ceil(10**6 / smallest)
    exact = [Fraction(weight).limit_denominator(limit) for weight in weights]
    shares = []
    for place, weight in enumerate(exact):
        rest = sum(exact[place:])
        shares.append(weight / rest if rest else Fraction(0))
    return shares


@lru_cache(maxsize=4)
def _block(order: Order, phase: int, block: int) -> NDArray[np.int64]:
    """Return the rows of a block, shape (BLOCK, 2).

    The columns are the domain of a row, and the number of rows of that domain before it in the
    whole order. The last block of a phase ends where the next phase begins.
    """
    first = order.starts[phase] + block * BLOCK
    last = first + BLOCK
    if phase + 1 < len(order.starts):
        last = min(last, order.starts[phase + 1])

    # The domains of the block's rows, each as often as its share says, in a random order.
    before = order.taken(first)
    after = order.taken(last)
    counts = np.subtract(after, before)
    sorted_domains = np.repeat(np.arange(len(counts)), counts)
    shuffle = _permutation((order.seed, 0, order.starts[phase] + block), last - first)
    domains = sorted_domains[shuffle]

    # The rows of each domain are numbered in the order in which they come.
    rows = np.stack([domains, np.zeros_like(domains)], axis=1)
    for domain in range(len(counts)):
        rows[domains == domain, 1] = range(before[domain], after[domain])
    return rows


@lru_cache(maxsize=64)
def _permutation(key: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """Return a permutation of `size` numbers, drawn from the key.

    It is made of raw Philox output only, which NumPy keeps the same in every version.
    """
    generator = np.random.Philox(np.random.SeedSequence(key))
    return generator.random_raw(size).argsort(kind="stable")
