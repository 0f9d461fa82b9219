"""The text of a run as its folder keeps it: what a reader of the run needs, when the text itself
has gone.

text.json       domains, topics, and the fingerprint of the text
tokenizer.json  how it was cut; none for bytes
held_out.npz    the rows of its validations, the columns of a `Batch`
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.data.corpus import IGNORED, Batch
from app.data.module import TokenDataModule
from app.data.steps import evenly
from app.data.tokenizers import Tokenizer
from app.registry import UserError, make
from app.training.files import read_json

ABOUT = "text.json"
TOKENIZER = "tokenizer.json"
ROWS = "held_out.npz"
COLUMNS = tuple(name for name in Batch.__annotations__ if name != "valid")


@dataclass(frozen=True)
class RunText:
    """What a run was trained on, read back from its folder."""

    domains: list[str]
    topics: list[str]
    fingerprint: str
    tokenizer: Tokenizer
    rows: Mapping[str, np.ndarray]  # the columns of a Batch, (N, S)

    def held_out(self, limit: int, size: int) -> Iterator[Batch]:
        """At most `limit` evenly spaced rows of every domain,
        `size` a batch and never of two domains.
        """
        for number in range(len(self.domains)):
            places = np.flatnonzero(self.rows["domain"][:, 0] == number)
            chosen = (
                [places[row.number] for row in evenly([len(places)], limit)] if len(places) else []
            )
            for start in range(0, len(chosen), size):
                yield self._batch(chosen[start : start + size])

    def _batch(self, places: list[int]) -> Batch:
        columns = {
            name: torch.from_numpy(values[places].astype(np.int64))
            for name, values in self.rows.items()
        }
        return Batch(**columns, valid=columns["targets"] >= 0)  # type: ignore[typeddict-item]


def text_files(data: TokenDataModule) -> dict[str, str | bytes]:
    """The files by name."""
    about = {"domains": data.domains, "topics": data.topics, "fingerprint": data.corpus_fingerprint}
    batches: Any = list(data.held_out(["val"], data.val_rows))
    kept = io.BytesIO()
    rows = {
        name: np.concatenate([batch[name].numpy() for batch in batches]).astype(np.int32)
        for name in COLUMNS
    }
    np.savez_compressed(kept, **rows)  # type: ignore[arg-type]
    files: dict[str, str | bytes] = {
        ABOUT: json.dumps(about, indent=1) + "\n",
        ROWS: kept.getvalue(),
    }
    learned = data.tokenizer.to_json()
    return files if learned is None else files | {TOKENIZER: learned}


def read_text(folder: Path, config: Mapping[str, object]) -> RunText:
    """The text of a run with this config.

    Raises:
        UserError: a file is missing or damaged.
    """
    about = read_json(folder / ABOUT, dict)
    named: list[Any] = [about.get(name) for name in ("domains", "topics", "fingerprint")]
    domains, topics, fingerprint = named
    if not (_is_texts(domains) and domains and _is_texts(topics) and isinstance(fingerprint, str)):
        raise UserError(
            f"{folder / ABOUT}: is damaged: it must hold domains, topics and fingerprint; restore "
            "it"
        )
    tokenizer = read_tokenizer(folder, config)
    rows = _read_rows(folder / ROWS, tokenizer.vocab_size, len(domains), len(topics))
    return RunText(domains, topics, fingerprint, tokenizer, rows)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _read_rows(
    path: Path, vocab_size: int, num_domains: int, num_topics: int
) -> dict[str, np.ndarray]:
    """Return the columns of the held-out rows, each (N, S).

    Raises:
        UserError: The file is missing or damaged, or a number in it is out of its range.
    """
    # the smallest value, and the first one that is too large
    limits = {
        "tokens": (0, vocab_size),
        "targets": (IGNORED, vocab_size),
        "document": (-1, 2**31),
        "domain": (0, num_domains),
        "topic": (-1, num_topics),
        "nbytes": (0, 2**16),
    }
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in COLUMNS}
    # numpy, zipfile and zlib raise many kinds for a damaged file
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is missing or damaged ({reason}); restore it") from error
    shape = columns["tokens"].shape
    for name, (least, limit) in limits.items():
        values = columns[name]
        if (
            values.shape != shape
            or len(shape) != 2
            or not values.size
            or values.dtype.kind not in "iu"
        ):
            raise UserError(
                f"{path}: is damaged: {name} is no table of whole numbers {shape}; restore it"
            )
        if values.min() < least or values.max() >= limit:
            raise UserError(
                f"{path}: is damaged: {name} must be in {least}..{limit - 1}; restore it"
            )
    return columns


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a run.

    Raises:
        UserError: Its file is missing or damaged.
    """
    tokenizer: Tokenizer = make("tokenizer", tokenizer_config(folder, config), key="tokenizer")
    # what it has learned is in the file
    if tokenizer.learns:
        raise UserError(f"{folder / TOKENIZER}: is missing; restore it")
    return tokenizer


def tokenizer_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a tokenizer that cuts other text as this run's does,
    also where it was learned.
    """
    own = dict(config["tokenizer"])
    path = folder / TOKENIZER
    if not path.exists():
        return own
    return {
        "name": "file",
        "path": str(path),
        "separator": own.get("separator"),
        "begin": own.get("begin"),
    }
