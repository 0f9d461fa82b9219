"""A finished cache, memory-mapped: token streams, cut into rows and stacked to batches.

A stream holds one domain of one split: SEP document SEP document ... SEP. As an input the separator
is the start symbol of the document that follows (`begin`, where the tokenizer has another token for
it); as a target it is the end of the one before. Row i has the inputs [i*S, i*S + S) and the
targets one further, so every token but the first is a target exactly once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.data.sources import SPLITS, Split

Array = NDArray[np.int64]
# the target of padding: what torch's cross-entropy skips
IGNORED = -100
META = "meta.json"
FILES = ("tokens", "nbytes", "documents")  # of a stream: NAME.tokens, ...


class Batch(TypedDict):
    """R rows of S tokens, all (R, S) int64 but `valid`;
    padding has target -100, document and topic -1, no bytes.
    """

    tokens: Tensor
    targets: Tensor
    valid: Tensor  # bool
    # number of the input's document inside its domain
    document: Tensor
    # 0 in a row of padding only
    domain: Tensor
    topic: Tensor  # -1: the document has none
    # UTF-8 bytes of the target
    nbytes: Tensor


class Row(NamedTuple):
    """One row, or one of padding only where `domain` is -1."""

    domain: int
    number: int


PADDING = Row(-1, 0)


class Stream:
    """The tokens of one domain in one split."""

    def __init__(
        self, folder: Path, name: str, token_type: str, separator: int, begin: int
    ) -> None:
        self._separator = separator
        self._begin = begin
        self.tokens = _open(folder / f"{name}.tokens", np.dtype(token_type))
        self.nbytes = _open(folder / f"{name}.nbytes", np.dtype(np.uint16))
        table = _open(folder / f"{name}.documents", np.dtype(np.int64)).reshape(-1, 2)
        # where the document's separator stands; its topic
        self.starts = table[:, 0]
        self.topics = table[:, 1]
        self.targets = max(0, len(self.tokens) - 1)

    def rows(self, seq_len: int) -> int:
        return -(-self.targets // seq_len)

    def row(self, number: int, seq_len: int) -> dict[str, Array]:
        """The columns of a `Batch` for one row, without its padding."""
        start = number * seq_len
        stop = min((number + 1) * seq_len, self.targets)
        inputs = self.tokens[start:stop].astype(np.int64)
        inputs[inputs == self._separator] = self._begin
        document = np.searchsorted(self.starts, np.arange(start, stop), side="right") - 1
        return {
            "tokens": inputs,
            "targets": self.tokens[start + 1 : stop + 1].astype(np.int64),
            "document": document,
            "topic": self.topics[document],
            "nbytes": self.nbytes[start + 1 : stop + 1].astype(np.int64),
        }


class Corpus:
    """All streams of a cache folder and what is known about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        self.domains: list[str] = meta["domains"]
        self.topics: list[str] = meta["topics"]
        self.fingerprint: str = meta["corpus_fingerprint"]
        self._separator: int = meta["separator"]
        # older caches have one token for both
        self._begin: int = meta.get("begin", self._separator)
        self._token_type: str = meta["token_type"]
        self.streams: dict[str, list[Stream]] = {split: self._streams(split) for split in SPLITS}

    def __reduce__(self) -> tuple[type["Corpus"], tuple[Path]]:
        # a worker maps the files anew instead of receiving them
        return Corpus, (self.folder,)

    def rows(self, split: Split, seq_len: int) -> list[int]:
        """Number of rows of each domain."""
        return [stream.rows(seq_len) for stream in self.streams[split]]

    def batch(self, split: Split, rows: Sequence[Row], seq_len: int) -> Batch:
        """The rows as tensors, one above the other."""
        size = (len(rows), seq_len)
        fill = {
            "tokens": self._begin,
            "targets": IGNORED,
            "document": -1,
            "domain": 0,
            "topic": -1,
            "nbytes": 0,
        }
        columns = {name: np.full(size, value, dtype=np.int64) for name, value in fill.items()}
        for place, row in enumerate(rows):
            if row == PADDING:
                continue
            for name, values in self.streams[split][row.domain].row(row.number, seq_len).items():
                columns[name][place, : len(values)] = values
            columns["domain"][place] = row.domain
        valid = torch.from_numpy(columns["targets"] != IGNORED)
        tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
        return cast(Batch, {**tensors, "valid": valid})

    def _streams(self, split: str) -> list[Stream]:
        names = [f"{split}.{place}" for place in range(len(self.domains))]
        return [
            Stream(self.folder, name, self._token_type, self._separator, self._begin)
            for name in names
        ]


def _open(path: Path, kind: np.dtype) -> NDArray:
    # an empty file cannot be mapped
    if not path.stat().st_size:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")
