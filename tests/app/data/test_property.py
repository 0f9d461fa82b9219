"""Any documents in any kind of file under any name:
the cache holds separators and what the tokenizer makes of each.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Model
from tokenizers import models, normalizers, pre_tokenizers, trainers

from app.data.cache import open_corpus
from app.data.corpus import Corpus
from app.data.reading.paths import ROWS, TEXT
from app.data.sources import SPLITS, Document
from app.data.sources.text import LONG, Text
from app.data.tokenizers.bpe import Bpe
from app.data.tokenizers.bytes import Bytes
from app.data.tokenizers.file import File
from app.registry import UserError
from tests.support.text_files import PACK, written

pytestmark = pytest.mark.nightly

ANY = settings(max_examples=100, deadline=None, derandomize=True)
LETTERS = st.characters(exclude_categories=["Cs"])
WORDS = [
    " ",
    "\n",
    "word",
    "naïve ",
    "日本",
    "\r\n",
    '"',
    ",",
    "\t",
    "<|end|>",
    "</s>",
    "e\u0301",
    "x" * 99,
]
DOCUMENT = st.lists(st.sampled_from(WORDS) | st.text(LETTERS, max_size=9), max_size=9).map("".join)
DOCUMENTS = st.lists(DOCUMENT, min_size=1, max_size=9)
NAME = st.binary(min_size=1, max_size=40).filter(
    lambda name: not {0, ord("/")} & {*name} and name[:1] not in b".~"
)


def byte_level() -> Model:
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    model.add_special_tokens(["<|end|>"])
    return model


def unigram() -> Model:
    model = Model(
        models.Unigram(
            [("<unk>", -9.0), ("</s>", -1.0), ("▁", -2.0), ("word", -2.0), ("x", -3.0)], unk_id=0
        )
    )
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    return model


def lower() -> Model:
    """Has no white space, so some documents have no token at all."""
    model = Model(models.WordLevel({"[UNK]": 0, "word": 1, "e": 2}, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return model


READY: dict[str, tuple[Callable[[], Model], str | None]] = {
    "byte_level": (byte_level, "<|end|>"),
    "unigram": (unigram, "</s>"),
    "lower": (lower, None),
}


@pytest.fixture(scope="module", params=["bytes", "bpe", *READY])
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Any]:
    """A tokenizer; each cache gets its own, because one may learn."""
    if request.param in READY:
        build, separator = READY[request.param]
        path = tmp_path_factory.mktemp("ready") / "tokenizer.json"
        build().save(str(path))
        return lambda: File(path=str(path), separator=separator, begin=None)
    return Bytes if request.param == "bytes" else lambda: Bpe(vocab_size=280)


def whole(tokenizer: Any, text: str) -> list[int]:
    """What the library makes of a text, without any code of ours."""
    return list(
        text.encode()
        if isinstance(tokenizer, Bytes)
        else model_of(tokenizer).encode(text, **PLAIN).ids
    )


def model_of(tokenizer: Any) -> Model:
    return Model.from_str(tokenizer.to_json())


PLAIN = {"add_special_tokens": False}


def documents(corpus: Corpus, split: str, separator: int) -> Iterator[tuple[list[int], int]]:
    """The tokens and bytes of each document of a split, by nothing but where the separators are."""
    (stream,) = corpus.streams[split]
    ids = stream.tokens.tolist()
    nbytes = stream.nbytes.tolist()
    places = [place for place, token in enumerate(ids) if token == separator]
    assert places == [] or (places[0], places[-1]) == (0, len(ids) - 1)
    assert stream.starts.tolist() == places[:-1]
    for start, stop in pairwise(places):
        yield ids[start + 1 : stop], sum(nbytes[start:stop])


def check(source: Text, tokenizer: Any, texts: list[str], folder: Path) -> None:
    given = list(source.documents())
    assert [document.text for document in given] == texts
    corpus = open_corpus(source, tokenizer, folder / "cache")
    for split in SPLITS:
        expected = [str(d.text) for d in given if d.split == split and has_tokens(tokenizer, d)]
        found = list(documents(corpus, split, tokenizer.separator))
        assert [size for _, size in found] == [len(text.encode()) for text in expected]
        for (ids, _), text in zip(found, expected, strict=True):
            assert ids == whole(tokenizer, text) or tokenizer.separator in whole(tokenizer, text)


def has_tokens(tokenizer: Any, document: Document) -> bool:
    return bool(whole(tokenizer, str(document.text)))


@ANY
@given(
    texts=DOCUMENTS,
    kind=st.sampled_from(ROWS),
    packing=st.sampled_from([*PACK]),
    name=NAME,
    capitals=st.booleans(),
)
def test_rows(
    make: Callable[[], Any], texts: list[str], kind: str, packing: str, name: bytes, capitals: bool
) -> None:
    suffix = kind + packing.replace("nothing", "")
    with tempfile.TemporaryDirectory() as root:
        path = os.path.join(  # noqa: PTH118
            os.fsencode(root), name + os.fsencode(suffix.upper() if capitals else suffix)
        )
        with open(path, "wb") as file:  # noqa: PTH123  a name of bytes
            file.write(PACK[packing](written(kind, [{"text": text} for text in texts])))
        source = Text(path=os.fsdecode(path), text_key="text")
        kept = [text for text in texts if text.strip()]
        if kept:
            check(source, make(), kept, Path(root))
        else:
            with pytest.raises(UserError, match="none of"):
                list(source.documents())


@ANY
@given(texts=DOCUMENTS, kind=st.sampled_from(TEXT), names=st.sets(NAME, min_size=9, max_size=9))
def test_files(make: Callable[[], Any], texts: list[str], kind: str, names: set[bytes]) -> None:
    readable = [text for text in texts if "\0" not in text]
    as_read = [
        text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n") for text in readable
    ]
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "in").mkdir()
        paths = sorted(Path(root, "in", os.fsdecode(name) + kind) for name in names)
        for path, text in zip(paths, readable, strict=False):
            path.write_bytes(text.encode())
        kept = [text for text in as_read if text.strip()]
        if len(kept) > 0 and len(readable) > 1:
            check(Text(path=str(Path(root, "in")), text_key="text"), make(), kept, Path(root))


@ANY
@given(words=st.lists(DOCUMENT, min_size=1, max_size=9), times=st.integers(1, 300))
def test_one_text_in_order(make: Callable[[], Any], words: list[str], times: int) -> None:
    text = ("".join(words) * times).replace("\0", "").replace("\r", "").replace("\ufeff", "")
    if not text.strip() or len(text) > 3 * LONG:
        return
    with tempfile.TemporaryDirectory() as root:
        Path(root, "a.txt").write_text(text)
        source = Text(path=str(Path(root, "a.txt")), text_key="text")
        parts = [str(document.text) for document in source.documents()]
        assert "".join(parts) == text
        check(source, make(), parts, Path(root))
