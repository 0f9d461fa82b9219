"""Every UTF-8 byte is a token; id 256 separates documents."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from app.data.tokenizers import Encoded
from app.registry import register


@register("tokenizer")
class Bytes:
    """Takes every UTF-8 byte as a token: bits per byte = nats per token / ln 2."""

    raw = True
    learns = False
    vocab_size = 257
    separator = begin = 256

    def fingerprint(self) -> str:
        return "bytes"

    def fit(self, texts: Iterable[str], folder: Path) -> None:
        pass

    def read(self, folder: Path) -> None:
        pass

    def to_json(self) -> None:
        return None

    def encode(self, texts: Sequence[str | bytes]) -> list[Encoded]:
        return [_encode(text.encode() if isinstance(text, str) else text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


def _encode(data: bytes) -> Encoded:
    ids = np.frombuffer(data, dtype=np.uint8)
    return Encoded(ids, np.ones_like(ids))
