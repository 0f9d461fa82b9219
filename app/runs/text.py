"""The text of a run as its folder keeps it: what a reader of the run needs, when the text itself has gone.

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
from zipfile import BadZipFile

import numpy as np
import torch

from app.data.corpus import Batch
from app.data.module import TokenDataModule
from app.data.steps import evenly
from app.data.tokenizers import Tokenizer
from app.registry import UserError, make
from app.training.files import read_whole

ABOUT, TOKENIZER, ROWS = "text.json", "tokenizer.json", "held_out.npz"
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
        """At most `limit` evenly spaced rows of every domain, `size` a batch and never of two domains."""
        for number in range(len(self.domains)):
            places = np.flatnonzero(self.rows["domain"][:, 0] == number)
            chosen = [places[row.number] for row in evenly([len(places)], limit)] if len(places) else []
            for start in range(0, len(chosen), size):
                yield self._batch(chosen[start : start + size])

    def _batch(self, places: list[int]) -> Batch:
        columns = {name: torch.from_numpy(values[places].astype(np.int64)) for name, values in self.rows.items()}
        return Batch(**columns, valid=columns["targets"] >= 0)  # type: ignore[typeddict-item]


def text_files(data: TokenDataModule) -> dict[str, str | bytes]:
    """The files by name."""
    about = {"domains": data.domains, "topics": data.topics, "fingerprint": data.corpus_fingerprint}
    batches: Any = list(data.held_out(["val"], data.val_rows))
    kept = io.BytesIO()
    rows = {name: np.concatenate([batch[name].numpy() for batch in batches]).astype(np.int32) for name in COLUMNS}
    np.savez_compressed(kept, **rows)  # type: ignore[arg-type]
    files: dict[str, str | bytes] = {ABOUT: json.dumps(about, indent=1) + "\n", ROWS: kept.getvalue()}
    learned = data.tokenizer.to_json()
    return files if learned is None else files | {TOKENIZER: learned}


def read_text(folder: Path, config: Mapping[str, Any]) -> RunText:
    """The text of a run with this config.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        about = json.loads(read_whole(folder / ABOUT))
        with np.load(folder / ROWS, allow_pickle=False) as rows:
            columns = {name: rows[name] for name in rows.files}
        named = about["domains"], about["topics"], about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UserError(f"{folder}: {ABOUT} or {ROWS} is missing or damaged ({error}); restore it") from error
    tokenizer = make("tokenizer", tokenizer_config(folder, config), key="tokenizer")
    return RunText(*named, tokenizer, columns)


def tokenizer_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a tokenizer that cuts other text as this run's does, also where it was learned."""
    own = dict(config["tokenizer"])
    path = folder / TOKENIZER
    if not path.exists():
        return own
    return {"name": "file", "path": str(path), "separator": own.get("separator"), "begin": own.get("begin")}
