"""A ready `tokenizer.json` of the Hugging Face `tokenizers` library: any model, any normalizer."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from app.data.tokenizers import Encoded, Integers, encode_pieces
from app.registry import UserError, register


@register("tokenizer")
class File:
    """Reads a tokenizer; the bytes of a token are those of the text from the token before it to its own end.

    Args:
        path: of a `tokenizer.json`.
        separator: a token of the file that separates documents; null: one more of our own.

    Raises:
        ValueError: there is no path, or the separator is no token of the file.
    """

    raw = False
    learns = False

    def __init__(self, *, path: str | None, separator: str | None) -> None:
        if not path:
            raise ValueError("path=null: tokenizer=file needs a file; set tokenizer.path=tokenizer.json")
        self._text = _read(Path(path).expanduser())
        self._use(separator)

    def fingerprint(self) -> str:
        return f"file {hashlib.sha256(self._text.encode()).hexdigest()} {self.separator}"

    def fit(self, texts: Iterable[str], folder: Path) -> None:
        pass

    def read(self, folder: Path) -> None:
        pass

    def to_json(self) -> str:
        return self._text

    def encode(self, texts: Sequence[str | bytes]) -> list[Encoded]:
        encode = partial(self._model.encode_batch, add_special_tokens=False)
        return [_join(*pair) for pair in encode_pieces(texts, encode, _ids_and_ends)]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._model.decode([token for token in ids if token != self.separator]))

    def _use(self, separator: str | None) -> None:
        self._model = Tokenizer.from_str(self._text)
        self._model.no_truncation()
        self._model.no_padding()
        size = 1 + max(self._model.get_vocab(with_added_tokens=True).values())
        known = self._model.token_to_id(separator) if separator else size
        if known is None:
            raise ValueError(f"separator={separator}: not a token of this file; null adds one of its own")
        self.separator = known
        self.vocab_size = max(size, known + 1)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        why = str(error).partition("\n")[0]
        raise UserError(f"tokenizer.path={path}: not a readable tokenizer.json ({why}); give another file") from error
    return text


def _ids_and_ends(encoding: Encoding) -> Integers:
    """(2, N): the tokens, and the characters where they end."""
    return np.array([encoding.ids, [end for _, end in encoding.offsets]], dtype=np.int32)


def _join(parts: list[str], encoded: list[Integers]) -> Encoded:
    starts = accumulate(map(len, parts), initial=0)
    moved = [np.add(pair, [[0], [start]]) for pair, start in zip(encoded, starts, strict=False)]
    ids, ends = np.concatenate(moved, axis=1)
    return Encoded(ids, _nbytes("".join(parts), ends))


def _nbytes(text: str, ends: Integers) -> Integers:
    if not len(ends):
        return ends
    code = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
    before = np.concatenate([[0], np.cumsum(width)])  # (characters + 1,) bytes before each character
    ends = np.maximum.accumulate(ends)
    ends[-1] = len(text)
    return np.diff(before[ends], prepend=0)
