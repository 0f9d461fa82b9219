"""docs/data.md, row by row: the files that it speaks of, in front of a fresh train.py."""

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from tests.support.interrupted import FRESH, ended, train_here
from tests.support.shell import SENTENCE
from tests.support.text_files import PACK, PAGE, Rows, table, written

pytestmark = pytest.mark.nightly

SMALL = (
    "model=nano data=text data.seq_len=16 data.batch_size=2 data.val_rows=2 callbacks=off "
    "logger=none"
)
LINE = (
    f"{SMALL} logger=none trainer.max_steps=1 trainer.val_every=1 trainer.checkpoint_every=1"
).split()
TEXTS = [
    f"text {n}: «naïve», \"said\" the 日本 'cat',\n\tand 😀 went {SENTENCE}" for n in range(300)
]
GOOD = [{"text": text} for text in TEXTS]
DEEP = "[" * 20_000 + "]" * 20_000
# a file, and the texts that are read out of it
Made = tuple[bytes, list[str]]


def good(kind: str, rows: Rows = GOOD, texts: list[str] = TEXTS) -> Made:
    return written(kind, rows), ["\n".join(texts)] if kind in (".txt", ".md") else texts


def windows(kind: str) -> Made:
    data, texts = good(kind, [{"text": SENTENCE}] * 300, [SENTENCE] * 300)
    return b"\xef\xbb\xbf" + data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"), texts


def drifting(kind: str) -> Made:
    others = [None, 7, "word", {"a": [1]}, [{"b": None}], True]
    data = written(
        kind,
        [{"meta": others[n // 50], **row, "other": others[n % 6]} for n, row in enumerate(GOOD)],
    )
    twice = b'"other": 1, "other": "x", "number": ' + b"9" * 5000 + b', "text"'
    return data.replace(b'"text"', twice, 1), TEXTS


def third(old: str, new: bytes) -> Callable[[str], Made]:
    """Rows of which something stands instead of what the third one is."""

    def make(kind: str) -> Made:
        rows = [{"text": "one"}, {"text": "two"}, {"text": "three"}, *GOOD]
        # their first line has the names
        rows = rows[1:] if kind in (".csv", ".tsv") else rows
        return written(kind, rows).replace(old.encode(), new, 1), []

    return make


def bomb(kind: str) -> Made:
    return gzip.compress(b"a" * (1 << 26)) * 48, []


NESTED = [{"meta": {"body": text, "other": n}} for n, text in enumerate(TEXTS)]
DATES = [f"20{n // 100:02}-{n % 12 + 1:02}-01" if n % 2 else f"{n}" for n in range(300)]
NO_TEXT = [{"body": text} for text in TEXTS]
CHATS = [{"messages": [{"role": "user", "content": text}]} for text in TEXTS]
LONG = ["word " * 4_000_000, *TEXTS]
TROUBLES: dict[str, Callable[[str], Made]] = {
    "texts with commas, quotes, line ends and letters of all alphabets": good,
    "the same": good,
    "a byte order mark and line ends of Windows": windows,
    "other fields whose types change, numbers of 5,000 digits, the same key twice": drifting,
    "the text inside of another field, and `data.text_key=meta.body`": lambda kind: good(
        kind, NESTED
    ),
    "a text on its own instead of an object": lambda kind: good(kind, TEXTS),
    "texts that are all dates or numbers": lambda kind: good(
        kind, [{"text": date} for date in DATES], DATES
    ),
    "one line of 20 MB": lambda kind: good(kind, [{"text": text} for text in LONG], LONG),
    "rows that are null or empty among good ones": lambda kind: good(
        kind, [{"text": None}, {"text": " "}, *GOOD]
    ),
    "rows without the key, or with a number or half a letter under it": lambda kind: good(
        kind, [{"body": "x"}, {"text": 5}, {"text": "\ud83d"}, *GOOD]
    ),
    "a row that ends before the column": lambda kind: (
        written(kind, [{"id": 1, **row} for row in GOOD]).replace(b"\r\n", b"\r\n2\r\n", 1),
        TEXTS,
    ),
    "no row with the key": lambda kind: (written(kind, NO_TEXT), []),
    "chats": lambda kind: (written(kind, CHATS), []),
    "nothing": lambda kind: (b"", []),
    "zero bytes": lambda kind: (bytes(999), []),
    "a byte that is not UTF-8": third("three", b"...\xff"),
    "a line that is no JSON": third('"three"', b"nonsense"),
    "an item that is no JSON": third('"three"', b"nonsense"),
    "a value nested 20,000 deep": third('"three"', DEEP.encode()),
    "an unquoted text that holds the separator": third("three", b"one,two\tthree"),
    "quotes that are never closed": third("three", b'"three'),
    "something else": lambda kind: (b"PAR1 and no more than that PAR1", []),
    "half of the file": good,
    "one line of 3 GB in 3 MB": bomb,
    "3 GB in 3 MB": bomb,
    "anything": lambda kind: (SENTENCE.encode(), []),
}


def _told(folder: Path, words: list[str]) -> None:
    os.environ["HOME"] = str(folder)
    os.dup2(os.open(folder / "told", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    train_here(folder, words, None)


def check(folder: Path, words: list[str], happens: str, texts: list[str]) -> None:
    """Trains in the folder; what it says, how it ends and what is in its cache then."""
    own = [] if "tokenizer=file" in words else ["tokenizer=bytes"]
    process = FRESH.Process(target=_told, args=(folder, [*LINE, *own, *words]))
    process.start()
    status = ended(process)
    told = (folder / "told").read_text()
    verb, *quotes = re.findall(r"^(read|refused)|`(.*?)`", happens)
    assert all(quote in told for _, quote in quotes), told
    if verb[0] == "refused":
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        # A slow machine prints a notice before the error.
        assert status == 2 and told.splitlines()[-1:] == errors and quotes, told
        assert not (folder / "runs").exists()
        return
    assert status == 0, told
    assert len(re.findall("without text|passed over|built anew", told)) == len(quotes), told
    (meta,) = [*(folder / ".cache").glob("*/meta.json"), *(folder / "cache").glob("*/meta.json")]
    counts = [
        split["text"] for split in json.loads(meta.read_text())["documents_tokens_bytes"].values()
    ]
    assert sum(size for _, _, size in counts) == sum(len(text.encode()) for text in texts)
    assert sum(number for number, _, _ in counts) == (len(texts) if len(texts) > 1 else 3)


CASES = [
    pytest.param(kind, packing, what, happens, id=f"{kind}-{packing}-{what[:30]}")
    for kinds, packings, what, happens in table(0)
    for kind, packing in product(*(cell.replace("`", "").split() for cell in (kinds, packings)))
]


@pytest.mark.parametrize(("kind", "packing", "what", "happens"), CASES)
def test_what_is_in_a_file(
    tmp_path: Path, kind: str, packing: str, what: str, happens: str
) -> None:
    data, texts = TROUBLES[what](kind.lower())
    packed = data if TROUBLES[what] is bomb else PACK[packing.lower()](data)
    file = tmp_path / f"a{kind}{packing.replace('nothing', '')}"
    file.write_bytes(packed[: len(packed) // 2] if what == "half of the file" else packed)
    key = re.findall("`(data.text_key=.*)`", what)
    first = 2 if kind == ".csv" else 1
    places = (
        happens.replace("{file}", file.name)
        .replace("{first}", str(first))
        .replace("{packing}", packing)
    )
    check(tmp_path, [f"data.path={file.name}", *key], places, texts)


def named(folder: Path) -> tuple[str, list[str]]:
    (folder / "[1] a=b, ${c}*?.txt").write_text("\n".join(TEXTS))
    return "[1] a=b, ${c}*?.txt", ["\n".join(TEXTS)]


def linked(folder: Path) -> tuple[str, list[str]]:
    (folder / "a.txt").write_text("\n".join(TEXTS))
    (folder / "b.txt").symlink_to("a.txt")
    return "b.txt", ["\n".join(TEXTS)]


def some(folder: Path, texts: list[str] = TEXTS) -> Path:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return folder


def mixed(folder: Path) -> tuple[str, list[str]]:
    for place in (".ipynb_checkpoints", "__MACOSX", ".git"):
        some(some(folder / "in") / place)
    for name in ("a.png", "README", "._0.txt", ".hidden.txt", "~$a.txt"):
        (folder / "in" / name).write_text("no data")
    return "in", TEXTS


def circle(folder: Path) -> tuple[str, list[str]]:
    some(folder / "in", TEXTS[:150])
    some(folder / "elsewhere", TEXTS[150:])
    (folder / "in/there").symlink_to("../elsewhere")
    (folder / "in/self").symlink_to(".")
    (folder / "elsewhere/back").symlink_to("../in")
    return "in", TEXTS


def pattern(folder: Path) -> tuple[str, list[str]]:
    some(folder / "in")
    (folder / "in/a.md").write_text("no data")
    return "in/*[0-9].t?t", TEXTS


def pictures(folder: Path) -> tuple[str, list[str]]:
    (folder / "in").mkdir()
    (folder / "in/a.png").write_text("no data")
    return "in", []


PATHS: dict[str, Callable[[Path], tuple[str, list[str]]]] = {
    "a file called `[1] a=b, ${c}*?.txt`": named,
    "a link to a file": linked,
    "a folder with pictures, hidden files and checkpoints of notebooks": mixed,
    "a folder with a link to another folder and one to itself": circle,
    "a pattern": pattern,
    "a pattern over folders with a link to itself": lambda folder: (
        "in/**/*.txt",
        circle(folder)[1],
    ),
    "a folder without text": pictures,
    "nothing that exists": lambda folder: ("nowhere", []),
}


@pytest.mark.parametrize(("what", "happens"), table(1))
def test_what_a_path_names(tmp_path: Path, what: str, happens: str) -> None:
    path, texts = PATHS[what](tmp_path)
    # Hydra reads brackets as a list
    quoted = f"data.path='{path}'" if "[0-9]" in path else f"data.path={path}"
    check(tmp_path, [quoted], happens, texts)


def tokenizer(folder: Path, model: Any) -> list[str]:
    (folder / "tokenizer.json").write_text(
        model if isinstance(model, str) else Tokenizer(model).to_str()
    )
    return ["tokenizer=file", "tokenizer.path=tokenizer.json"]


def without_unknown(folder: Path) -> list[str]:
    letters = sorted(set("".join(TEXTS)) - {"«"})
    return tokenizer(folder, models.Unigram([(letter, -1.0) for letter in letters]))


def separated(folder: Path) -> list[str]:
    """The separator is in every third text; a letter is a token."""
    texts = [text + "<end>" * (number % 3) for number, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_bytes(written(".jsonl", [{"text": text} for text in texts]))
    vocabulary = {letter: place for place, letter in enumerate(sorted(set("".join(texts))))}
    model = Tokenizer(models.BPE(vocabulary, []))
    model.add_special_tokens(["<end>"])
    return [*tokenizer(folder, model.to_str()), "tokenizer.separator='<end>'"]


def damaged(folder: Path) -> list[str]:
    check(folder, ["data.path=a.jsonl"], "read", TEXTS)
    (file,) = (folder / ".cache").glob("*/train.0.tokens")
    data = file.read_bytes()
    file.write_bytes(data[:200] + b"\xff\xff" + data[202:])
    shutil.rmtree(folder / "runs")
    return []


OTHERS: dict[str, Callable[[Path], list[str]]] = {
    "a `tokenizer.json` has no token for a letter of the text, and none for what is "
    "unknown": without_unknown,
    "a `tokenizer.json` has an empty vocabulary": lambda folder: tokenizer(folder, models.BPE()),
    "a `tokenizer.json` is none": lambda folder: tokenizer(folder, "{}"),
    "the text holds the name of the separator": separated,
    "a token of the cache lies beyond the vocabulary": damaged,
    "`data.cache_dir=~/cache`, which is not there yet": lambda folder: ["data.cache_dir=~/cache"],
}


@pytest.mark.parametrize(("what", "happens"), table(2))
def test_what_else_is_wrong(tmp_path: Path, what: str, happens: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(written(".jsonl", GOOD))
    words = OTHERS[what](tmp_path)
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    check(tmp_path, ["data.path=a.jsonl", *words], happens, texts)


def test_the_page_turns_chats_into_text(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(written(".jsonl", CHATS))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        exec(code, {})
    finally:
        os.chdir(before)
    check(tmp_path, ["data.path=text.jsonl"], "read", [f"user: {text}" for text in TEXTS])
