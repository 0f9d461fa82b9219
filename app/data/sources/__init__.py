"""Where text comes from: a source names its domains and yields its documents,
each already in a split.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Literal, NamedTuple, Protocol, TextIO

from lightning.fabric.utilities.rank_zero import rank_zero_only

from app.registry import unknown

log = logging.getLogger(__name__)
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# the share of the documents that each of val and test gets
HELD_OUT = 0.03


class Document(NamedTuple):
    """One text that attention may see as a whole; `id` is unique and the same on every machine."""

    id: str
    text: str | bytes
    domain: str
    topic: str | None
    split: Split


class Phase(NamedTuple):
    """The share of each domain, any scale, until this part of the steps; None:
    proportional to its size.
    """

    until: float
    weights: Sequence[float] | None


BY_SIZE = (Phase(1.0, None),)


class Source(Protocol):
    """What a class registered under the kind `data` offers; building it reads no text."""

    # documents are bytes, without a separator behind them: only tokenizer=bytes reads them
    raw: bool

    @property
    def domains(self) -> Sequence[str]:
        """Names of the domains that have documents, in the order of their numbers."""

    @property
    def phases(self) -> Sequence[Phase]:
        """The shares of the domains in the training rows, one phase after the other;
        the last one ends at 1.
        """

    @property
    def pinned(self) -> Mapping[str, object]:
        """Values of its knobs that a run keeps, so that it goes on with the same text;
        after the text was read.
        """

    def fingerprint(self) -> str:
        """Changes whenever `documents` would; cheap."""

    def documents(self) -> Iterator[Document]:
        """All documents of all splits, in an order that never changes.

        Raises:
            UserError: the text cannot be read.
        """


def require_shares(knob: str, shares: Mapping[str, float], known: Iterable[str]) -> None:
    """Checks the shares of what is known.

    Raises:
        ValueError: one is of something else or negative, or none is positive.
    """
    for name, share in shares.items():
        if name not in known:
            raise ValueError(unknown(f"{knob}.{name}={share}", name, known))
        if share < 0:
            raise ValueError(f"{knob}.{name}={share}: must not be negative")
    if not any(shares.values()):
        raise ValueError(f"{knob}={shares}: one of them must be positive")


class Once:
    """Tells each line once and by the first process only,
    though a tokenizer that learns reads the text twice.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, line: str) -> None:
        if line and line not in self._told:
            rank_zero_only(log.warning)(line)
        self._told.add(line)


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return str(error).partition("\n")[0] or type(error).__name__


def split_of(document_id: str) -> Split:
    """Assigns a document to a split by a hash of its id:
    the same on every machine, and when others come or go.
    """
    place = int.from_bytes(hashlib.sha256(os.fsencode(document_id)).digest()[:8]) / 2**64
    return "val" if place < HELD_OUT else "test" if place < 2 * HELD_OUT else "train"


def in_order(text: TextIO, total: int, most: int) -> Iterator[tuple[Split, str]]:
    """Cuts a text of `total` characters into its first 94 %, the next 3 % and the last 3 %, each in
    parts of about `most`, all of them at line ends where there are some.
    """
    done = 0
    for split, share in zip(SPLITS, (1 - 2 * HELD_OUT, 1 - HELD_OUT, 1.0), strict=True):
        while done < int(total * share):
            part = text.read(min(most, int(total * share) - done))
            part += text.readline(total // 100)
            done += len(part)
            yield split, part


def chunks(text: str, size: int) -> Iterator[str]:
    """Cuts a text at line ends into equal parts of about `size` characters;
    one shorter than 1.5 parts stays whole.
    """
    count = max(1, round(len(text) / size))
    start = 0
    for part in range(1, count + 1):
        stop = (
            len(text)
            if part == count
            else text.find("\n", ceil(len(text) * part / count)) + 1 or len(text)
        )
        if stop > start:
            yield text[start:stop]
        start = max(start, stop)
