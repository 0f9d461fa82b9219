"""A ready `tokenizer.json` of the Hugging Face `tokenizers` library: any model, any normalizer."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, models

from app.data.reading.paths import home
from app.data.sources import first_line
from app.data.tokenizers import Encoded, Integers, encode_pieces, pieces
from app.registry import UserError, register

# characters on each side of a cut that are looked at
AROUND = 128
WORD = re.compile(r"\S+|\s+")


@register("tokenizer")
class File:
    """Reads a tokenizer; the bytes of a token are those of the text from the token before it to its
    own end.

    Args:
        path: of a `tokenizer.json`.
        separator: Token of the file that ends a document; null: one more token of our own.
        begin: Token of the file that starts a document; null: the separator.

    Raises:
        ValueError: There is no path, or the separator or `begin` is not a token of the file.
    """

    raw = False
    learns = False

    def __init__(self, *, path: str | None, separator: str | None, begin: str | None) -> None:
        if not path:
            raise ValueError(
                "path=null: tokenizer=file needs a file; set tokenizer.path=tokenizer.json"
            )
        self._path = path
        self._named = separator
        self._named_begin = begin
        self._text = _read(home(path, "tokenizer.path"))
        self._use(separator, begin)

    def fingerprint(self) -> str:
        begin = "" if self.begin == self.separator else f" {self.begin}"
        return f"file 2 {hashlib.sha256(self._text.encode()).hexdigest()} {self.separator}{begin}"

    def fit(self, texts: Iterable[str], folder: Path) -> None:
        pass

    def read(self, folder: Path) -> None:
        pass

    def to_json(self) -> str:
        return self._text

    def encode(self, texts: Sequence[str | bytes]) -> list[Encoded]:
        plain = [str(text) for text in texts]
        read = zip(plain, self._ids_and_ends(plain), strict=True)
        return [Encoded(ids, _nbytes(text, ends)) for text, (ids, ends) in read]

    def decode(self, ids: Iterable[int]) -> str:
        around = (self.begin, self.separator)
        return str(
            self._model.decode(
                [token for token in ids if token not in around], skip_special_tokens=False
            )
        )

    def _use(self, separator: str | None, begin: str | None) -> None:
        self._model = Tokenizer.from_str(self._text)
        size = 1 + max(self._model.get_vocab(with_added_tokens=True).values())
        known = self._model.token_to_id(separator) if separator else size
        if known is None:
            raise ValueError(
                f"separator={separator}: not a token of this file; null adds one of its own"
            )
        start = self._model.token_to_id(begin) if begin else known
        if start is None:
            raise ValueError(f"begin={begin}: not a token of this file; null takes the separator")
        self.separator = known
        self.begin = start
        added = {token.content for token in self._model.get_added_tokens_decoder().values()}
        around = {token for token in (separator, begin) if token in added}
        self._model = Tokenizer.from_str(matched_in_text(self._text, exempt=around))
        self._model.no_truncation()
        self._model.no_padding()
        # text that spells one of these two is read as plain text
        self._model.encode_special_tokens = True
        self.vocab_size = max(size, known + 1)
        # none is left out
        self._letters = {token.content for token in self._model.get_added_tokens_decoder().values()}

    def _fits(self, text: str, place: int) -> bool:
        """Whether a cut at this place changes no token around it."""
        left = text[place - AROUND : place]
        right = text[place : place + AROUND]
        try:
            return self._ids(left + right) == self._ids(left) + self._ids(right)
        # told where the text itself is encoded
        except Exception:
            return False

    def _ids(self, text: str) -> list[int]:
        return list(self._model.encode(text, add_special_tokens=False).ids)

    def _ids_and_ends(self, texts: Sequence[str]) -> list[Integers]:
        """(2, N) of each text: its tokens, and the characters where they end."""
        self._refuse_losses(texts)
        cut = [list(pieces(text, self._fits)) for text in texts]
        encode = partial(self._model.encode_batch, add_special_tokens=False)
        try:
            encoded = encode_pieces(cut, encode, _kept)
        except Exception as error:  # `tokenizers` raises bare Exceptions
            word = next(
                (word for text in texts for word in WORD.findall(text) if self._fails(word)), None
            )
            if word is None:
                raise
            raise self._unknown(word, first_line(error)) from error
        return [
            self._without_separator(text, whole)
            for text, whole in zip(texts, map(_join, cut, encoded), strict=True)
        ]

    def _without_separator(self, text: str, read: Integers) -> Integers:
        """The same where no token is the separator or `begin`;
        else of the text cut inside of the words that are.
        """
        ids, ends = read
        found = np.flatnonzero((ids == self.separator) | (ids == self.begin))
        if not len(found):
            return read
        starts = np.where(found > 0, ends[found - 1], 0)
        stops = ends[found]
        if (stops - starts < 2).any():
            name, token = (
                ("separator", self._named)
                if self.separator in ids
                else ("begin", self._named_begin)
            )
            raise UserError(
                f"tokenizer.{name}={token}: is also how the text {text[starts[0] : stops[0]]!r} is "
                "read; name a token that is no text, or null for one of its own"
            )
        cuts = [0, *(starts + stops) // 2, len(text)]
        parts = [text[start:stop] for start, stop in pairwise(cuts)]
        return _join(parts, self._ids_and_ends(parts))

    def _refuse_losses(self, texts: Sequence[str]) -> None:
        """Raises where a letter would get no token and no error either,
        and so be missing in the text.
        """
        letters = set[str]().union(*texts) - self._letters
        if lost := {letter for letter in letters if self._loses(letter)}:
            word = next(word for text in texts for word in WORD.findall(text) if lost & {*word})
            raise self._unknown(word, "it would be left out")
        self._letters |= letters

    def _loses(self, text: str) -> bool:
        """Whether a BPE without an unknown token lacks a letter of this text;
        other models raise an error then.
        """
        model = self._model.model
        cut = self._model.pre_tokenizer
        if not isinstance(model, models.BPE) or model.unk_token is not None:
            return False
        normal = self._model.normalizer.normalize_str(text) if self._model.normalizer else text
        words = [word for word, _ in cut.pre_tokenize_str(normal)] if cut else [normal]
        before = model.continuing_subword_prefix or ""
        after = model.end_of_word_suffix or ""
        letters = {
            letter: {letter, before + letter, letter + after} for word in words for letter in word
        }
        return any(
            all(model.token_to_id(form) is None for form in forms) for forms in letters.values()
        )

    def _unknown(self, word: str, why: str) -> UserError:
        """The error that names a word that cannot be read, and the character where that ends."""
        letter = next(
            (word[end - 1] for end in range(1, len(word)) if self._fails(word[:end])), word[-1:]
        )
        return UserError(
            f"tokenizer.path={self._path}: has no token for {letter!r} in {word[:40]!r}, and none "
            f"for what is unknown ({why}); use a file with an unknown token, or tokenizer=bpe"
        )

    def _fails(self, text: str) -> bool:
        try:
            self._ids(text)
        except Exception:
            return True
        return any(map(self._loses, {*text} - self._letters))


def matched_in_text(written: str, exempt: Collection[str] = ()) -> str:
    """Return a tokenizer.json in which only the exempt added tokens count as special.

    With `encode_special_tokens` a tokenizer matches all added tokens in text but the special ones.
    """
    values = json.loads(written)
    for token in values.get("added_tokens") or []:
        token["special"] = token["content"] in exempt
    return json.dumps(values)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        vocabulary = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise UserError(
            f"tokenizer.path={path}: not a readable tokenizer.json ({first_line(error)}); give "
            "another file"
        ) from error
    if not vocabulary:
        raise UserError(f"tokenizer.path={path}: has an empty vocabulary; give another file")
    return text


def _kept(encoding: Encoding) -> Integers:
    return np.array([encoding.ids, [end for _, end in encoding.offsets]], dtype=np.int32)


def _join(parts: Sequence[str], read: Sequence[Integers]) -> Integers:
    """(2, N) of the parts one after the other; the ends never fall."""
    starts = accumulate(map(len, parts), initial=0)
    ids, ends = np.concatenate(
        [np.add(each, [[0], [start]]) for each, start in zip(read, starts, strict=False)], axis=1
    )
    return np.stack([ids, np.maximum.accumulate(ends)])


def _nbytes(text: str, ends: Integers) -> Integers:
    if not len(ends):
        return ends
    code = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
    # (characters + 1,) bytes before each character
    before = np.concatenate([[0], np.cumsum(width)])
    return np.diff(before[np.append(ends[:-1], len(text))], prepend=0)
