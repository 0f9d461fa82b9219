"""Writes the files of a token cache:
for each split and domain a stream of tokens, their bytes, and its documents.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from app.data.corpus import FILES, META
from app.data.sources import SPLITS, Document, Source
from app.data.tokenizers import Encoded, Tokenizer
from app.fault_points import fault_point
from app.registry import UserError


class StreamWriter:
    """One stream: separator, document, separator, ...
    and a table of where each document starts and its topic.
    """

    def __init__(self, files: Sequence[BinaryIO], separator: int, token_type: str) -> None:
        self._tokens, self._nbytes, self._table = files
        self._separator = separator
        self._token_type = token_type
        self.documents = self.tokens = self.bytes = 0

    def add(self, encoded: Encoded, topic: int) -> None:
        fault_point("write tokens")
        self._table.write(np.array([self.tokens, topic], dtype=np.int64).tobytes())
        self.documents += 1
        self.separate()
        self._write(encoded.ids, encoded.nbytes)

    def separate(self) -> None:
        self._write(np.array([self._separator]), np.array([0]))

    def _write(self, ids: NDArray[Any], nbytes: NDArray[Any]) -> None:
        self._tokens.write(ids.astype(self._token_type).tobytes())
        self._nbytes.write(nbytes.astype(np.uint16).tobytes())
        self.tokens += len(ids)
        self.bytes += int(nbytes.sum())


class CorpusWriter:
    """All streams of a corpus and its description."""

    def __init__(
        self, folder: Path, source: Source, tokenizer: Tokenizer, files: ExitStack
    ) -> None:
        self._folder = folder
        self._source = source
        self._tokenizer = tokenizer
        self._token_type = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self._topics: dict[str, int] = {}
        self._hashes: list[bytes] = []
        self._domains = list(source.domains)
        self._streams = {
            (split, domain): self._stream(f"{split}.{place}", files)
            for split in SPLITS
            for place, domain in enumerate(self._domains)
        }

    def add(self, document: Document, encoded: Encoded) -> None:
        if not len(encoded.ids):
            return
        if encoded.nbytes.max() >= 1 << 16:
            raise UserError(
                f"tokenizer: one token stands for over 64 KB of {document.id!r}; use another "
                "tokenizer"
            )
        topic = (
            -1
            if document.topic is None
            else self._topics.setdefault(document.topic, len(self._topics))
        )
        self._streams[document.split, document.domain].add(encoded, topic)
        data = document.text if isinstance(document.text, bytes) else document.text.encode()
        self._hashes.append(
            hashlib.sha256(f"{document.split} {document.domain} ".encode() + data).digest()
        )

    @property
    def size(self) -> tuple[int, int]:
        """Bytes of text, and tokens."""
        return sum(s.bytes for s in self._streams.values()), sum(
            s.tokens for s in self._streams.values()
        )

    def finish(self) -> None:
        """Ends the last documents and writes the description,
        after which the folder is complete.
        """
        for stream in self._streams.values():
            if stream.documents and not self._source.raw:
                stream.separate()

    def describe(self) -> None:
        counts = {
            split: {
                d: [s.documents, s.tokens, s.bytes]
                for d in self._domains
                for s in [self._streams[split, d]]
            }
            for split in SPLITS
        }
        meta = {
            "corpus_fingerprint": hashlib.sha256(b"".join(sorted(self._hashes))).hexdigest(),
            "domains": self._domains,
            "topics": list(self._topics),
            "separator": self._tokenizer.separator,
            "begin": self._tokenizer.begin,
            "token_type": self._token_type,
            "documents_tokens_bytes": counts,
        }
        (self._folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def _stream(self, name: str, files: ExitStack) -> StreamWriter:
        opened = [
            files.enter_context((self._folder / f"{name}.{kind}").open("wb")) for kind in FILES
        ]
        return StreamWriter(opened, self._tokenizer.separator, self._token_type)
