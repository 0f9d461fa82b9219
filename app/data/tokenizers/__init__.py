"""Text <-> token ids. A token knows how many UTF-8 bytes it stands for:
bits per byte compare across tokenizers.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Encoding

Integers = NDArray[np.integer]
Kept = TypeVar("Kept")
# pieces that are encoded together
GROUP = 1 << 12
# characters: a text of more is cut, so that the cores share it
PIECE = 1 << 14
BEFORE_SPACE = re.compile(r"(?<=\S)[ \n]")
Fits = Callable[[str, int], bool]


class Encoded(NamedTuple):
    """The tokens of one document; `nbytes` sums to the UTF-8 bytes of the
    document (unless it has no token at all).
    """

    ids: Integers  # (N,)
    nbytes: Integers  # (N,)


class Tokenizer(Protocol):
    """The interface of a class of the kind `tokenizer`; `separator` is never produced from text.

    `separator` ends a document. `begin` starts one; it is the same token unless the tokenizer has
    two of them, as imported models do that were trained with both `<s>` and `</s>`.
    """

    # encodes bytes as they are, UTF-8 or not
    raw: bool
    learns: bool  # `fit` needs text
    # including the separator; what was asked for until `fit` or `read` knows better
    vocab_size: int
    separator: int
    begin: int

    def fingerprint(self) -> str:
        """Changes whenever the tokens of the same text would."""

    def fit(self, texts: Iterable[str], folder: Path) -> None:
        """Learns from the training text, and writes into the folder what `read` needs."""

    def read(self, folder: Path) -> None:
        """Becomes the tokenizer that `fit` wrote there."""

    def to_json(self) -> str | None:
        """What stands in a `tokenizer.json` of Hugging Face's library that cuts alike; None:
        it needs none.
        """

    def encode(self, texts: Sequence[str | bytes]) -> list[Encoded]:
        """The documents as tokens, without separators; runs on all cores where it is worth it."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text, without separators; bytes that are not UTF-8 become U+FFFD."""


def pieces(text: str, fits: Fits = lambda text, place: True) -> Iterator[str]:
    """Cuts a long text before white space that follows a word, where `fits` says that no token
    changes by it.

    No token of a byte-level BPE crosses such a place. Where eight places in a row do not fit, none
    will: the rest is one piece.
    """
    start = 0
    while len(text) - start > PIECE:
        places = islice(BEFORE_SPACE.finditer(text, start + PIECE), 8)
        stop = next((place.start() for place in places if fits(text, place.start())), len(text))
        yield text[start:stop]
        start = stop
    if start < len(text) or not text:
        yield text[start:]


def encode_pieces(
    cut: Sequence[list[str]],
    encode: "Callable[[list[str]], list[Encoding]]",
    keep: "Callable[[Encoding], Kept]",
) -> list[list[Kept]]:
    """What is kept of the encodings of all pieces of each text;
    they are large, so the cores share `GROUP` of them.
    """
    flat = [piece for parts in cut for piece in parts]
    groups = (encode(flat[start : start + GROUP]) for start in range(0, len(flat), GROUP))
    kept = (keep(encoding) for group in groups for encoding in group)
    return [list(islice(kept, len(parts))) for parts in cut]
