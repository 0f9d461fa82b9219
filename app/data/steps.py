"""Which rows make up a batch: all of a rank's rows of an optimizer step in training,
always the same ones otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from torch.utils.data import Dataset, Sampler

from app.data.corpus import PADDING, Batch, Corpus, Row
from app.data.order import Order
from app.data.sources import Split


class Endless(Sampler[int]):
    """Counts steps without end from `next_step()`, called when the loop starts: after a checkpoint
    was read.

    With a `period` it begins anew at 0 after so many.
    """

    def __init__(self, next_step: Callable[[], int], period: int | None) -> None:
        self._next_step = next_step
        self._period = period

    def __iter__(self) -> Iterator[int]:
        steps = count(self._next_step())
        return steps if self._period is None else (step % self._period for step in steps)


class TrainSteps(Dataset[Batch]):
    """Item t: the rows of optimizer step t that stand at `places`
    among the `size` rows of all ranks.
    """

    def __init__(
        self, corpus: Corpus, order: Order, seq_len: int, size: int, places: Sequence[int]
    ) -> None:
        self._corpus = corpus
        self._order = order
        self._seq_len = seq_len
        self._size = size
        self._places = places

    def __getitem__(self, step: int) -> Batch:
        rows = [self._order[step * self._size + place] for place in self._places]
        return self._corpus.batch("train", rows, self._seq_len)


class HeldOut(Dataset[Batch]):
    """Every `ranks`-th batch of the rows from `rank` on,
    filled up so that all ranks have as many.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: Split,
        rows: Sequence[Row],
        seq_len: int,
        size: int,
        rank: int,
        ranks: int,
    ) -> None:
        self._corpus = corpus
        self._split = split
        self._seq_len = seq_len
        count = -(-len(rows) // (size * ranks))  # batches of one rank
        padded = [*rows, *[PADDING] * (count * size * ranks - len(rows))]
        self._batches = [
            padded[start : start + size] for start in range(rank * size, len(padded), size * ranks)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, item: int) -> Batch:
        return self._corpus.batch(self._split, self._batches[item], self._seq_len)


def evenly(rows: Sequence[int], limit: int | None) -> list[Row]:
    """At most `limit` rows of each domain, evenly spaced; None: all of them."""
    taken = [min(limit or number, number) for number in rows]
    return [
        Row(domain, place * rows[domain] // number)
        for domain, number in enumerate(taken)
        for place in range(number)
    ]
