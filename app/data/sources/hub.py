"""Any text data set of the Hugging Face Hub, or a local folder that `datasets` can load."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.data.reading.packing import LARGEST
from app.data.sources import Document, Split, first_line, in_order, read_dataset, split_of
from app.registry import UserError, register

OWN: dict[str, Split] = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


@register("data")
class Hub:
    """Reads a data set with its own splits; a missing one is taken out of its training split by hash.

    Args:
        name: OWNER/NAME on the Hub, or a folder.
        config: the set's configuration; null: its default.
        revision: git revision; null: the newest.
        text_key: the column that holds the text.
        join_rows: whether the rows are the lines of one running text.
        streaming: whether it is read over the network without a copy on disk.
        max_bytes: of text taken from each split of the set; at least 1, or null: all.

    Raises:
        ValueError: a knob is out of its range.
    """

    raw = False
    weights = None
    versions: Mapping[str, str] = {}

    def __init__(
        self,
        *,
        name: str | None,
        config: str | None,
        revision: str | None,
        text_key: str,
        join_rows: bool,
        streaming: bool,
        max_bytes: int | None,
    ) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes}: must be at least 1, or null for everything")
        self._name, self._config, self._revision = name, config, revision
        self._text_key, self._join_rows = text_key, join_rows
        self._streaming, self._max_bytes = streaming, max_bytes

    @property
    def domains(self) -> Sequence[str]:
        return (Path(self._name or "hub").name,)

    def fingerprint(self) -> str:
        local = [(str(p), p.stat().st_mtime_ns) for p in sorted(Path(self._named()).rglob("*")) if p.is_file()]
        what = [self._name, self._config, self._revision, self._text_key, self._join_rows, self._max_bytes, local]
        return f"hub {what}"

    def documents(self) -> Iterator[Document]:
        splits = {OWN[key]: rows for key, rows in self._read().items() if key in OWN}
        if "train" not in splits:
            raise UserError(f"data.name={self._name}: has no split 'train'; name another data set or data.config")
        for split, rows in splits.items():
            if self._join_rows:
                yield from self._joined(split, rows, alone=len(splits) == 1)
            else:
                yield from self._single(split, rows, own=set(splits))

    def _single(self, split: Split, rows: Any, own: set[Split]) -> Iterator[Document]:
        for number, text in enumerate(self._texts(rows)):
            name = f"{split}/{number}"
            by_hash = split_of(name)
            held_out = split == "train" and by_hash not in own
            yield Document(name, text, self.domains[0], None, by_hash if held_out else split)

    def _joined(self, split: Split, rows: Any, alone: bool) -> Iterator[Document]:
        text = "".join(self._texts(rows))
        parts = in_order(io.StringIO(text), len(text), LARGEST) if alone else [(split, text)]
        for number, (part, piece) in enumerate(parts):
            yield Document(f"{split}/{number}", piece, self.domains[0], None, part)

    def _texts(self, rows: Any) -> Iterator[str]:
        size = 0
        for row in rows:
            if not isinstance(row.get(self._text_key), str):
                keys = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "its text columns"
                raise UserError(f"data.text_key={self._text_key}: no text under this key; set it to one of {keys}")
            yield row[self._text_key]
            size += len(row[self._text_key].encode())
            if self._max_bytes and size >= self._max_bytes:
                return

    def _named(self) -> str:
        if not self._name:
            raise UserError("data.name=null: data=hub needs a data set; set data.name=OWNER/NAME")
        return self._name

    def _read(self) -> Any:
        name = self._named()
        try:
            return read_dataset(name, self._config, revision=self._revision, streaming=self._streaming)
        except Exception as error:  # no network, no such set, gated, wrong config: each has its own error
            raise UserError(
                f"data.name={self._name}: cannot be loaded ({first_line(error)}); check the name and the network, "
                "or use data=text data.path=FILE"
            ) from error
