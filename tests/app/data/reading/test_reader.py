"""What only large or broken input shows:
parts of a long text, rows over the reader's own pieces, an early end.
"""

import json
from pathlib import Path

import pytest

from app.data.reading.column import ENOUGH, TextColumn
from app.data.reading.paths import files_of, home
from app.data.reading.rows import rows_of
from app.data.sources import text as source
from app.data.sources.text import Text
from app.registry import UserError


def test_a_text_over_the_largest_document_is_read_in_parts_at_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "LARGEST", 10_000)
    lines = "".join(f"line {number} é\r\n" for number in range(20_000))
    (tmp_path / "a.txt").write_bytes(lines.encode())
    documents = list(Text(path=str(tmp_path / "a.txt"), text_key="text").documents())
    texts = [str(document.text) for document in documents]
    assert "".join(texts) == lines.replace("\r\n", "\n")
    assert all(len(text) < 15_000 and text.endswith("\n") for text in texts)
    assert [document.split for document in documents] == sorted(
        (d.split for d in documents), key=["train", "val", "test"].index
    )
    held_out = sum(len(str(d.text)) for d in documents if d.split != "train") / sum(map(len, texts))
    assert held_out == pytest.approx(0.06, abs=0.01)


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_of_an_array_may_be_longer_than_what_is_read_at_once(
    tmp_path: Path, indent: int | None
) -> None:
    texts = ["é" * 700_000, "b" * 3_000_000, *(f"row {number}" for number in range(100_000))]
    (tmp_path / "a.json").write_text(
        json.dumps([{"text": text} for text in texts], indent=indent, ensure_ascii=False)
    )
    assert [row["text"] for _, row in rows_of(tmp_path / "a.json", "text")] == texts


def test_an_array_that_ends_too_early_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"}')
    with pytest.raises(UserError, match="row 3 is not JSON"):
        list(rows_of(tmp_path / "a.json", "text"))


def test_a_wrong_key_is_told_before_all_is_read() -> None:
    column = TextColumn("text", "data.path=x", blank_lines=False)
    row = {"id": 1, "page": {"body": "x", "title": "y"}, "url": "z"}
    for number in range(1, ENOUGH):
        assert column.text("a.jsonl", number, row) is None
    with pytest.raises(
        UserError,
        match=r"none of 10,000 rows .*first: a.jsonl:1; set .* "
        r"page.body, page.title, url$",
    ):
        column.text("a.jsonl", ENOUGH, row)


def test_late_rows_without_text_end_nothing() -> None:
    column = TextColumn("text", "data.path=x", blank_lines=False)
    assert column.text("a.jsonl", 1, {"text": "one"}) == "one"
    for number in range(2, 2 * ENOUGH):
        column.text("a.jsonl", number, {"text": None})
    assert (
        column.finish()
        == "data.path=x: 19,998 of 19,999 rows without text are left out (19,998 null), first: "
        "a.jsonl:2"
    )


def test_a_key_with_dots_of_its_own_is_meant_first() -> None:
    column = TextColumn("a.b", "data.path=x", blank_lines=False)
    assert column.text("a", 1, {"a.b": "own", "a": {"b": "inner"}}) == "own"
    assert column.text("a", 2, {"a": {"b": "inner"}}) == "inner"
    assert column.text("a", 3, {"a": "no object"}) is None


def test_home_is_the_users_unless_something_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert home("~/a", "data.path") == tmp_path / "home/a"
    (tmp_path / "~").mkdir()
    (tmp_path / "~/a").write_text("")
    assert home("~/a", "data.path") == Path("~/a")
    with pytest.raises(
        UserError,
        match=r"^data.cache_dir=~nobody-of-this-name/a: no home folder "
        r"is known here",
    ):
        home("~nobody-of-this-name/a", "data.cache_dir")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*.txt", ["a.txt", "in/b.txt", "in/deep/c.txt"]),
        ("in/**/*.txt", ["in/b.txt", "in/deep/c.txt"]),
        ("**/deep/*", ["in/deep/c.txt"]),
        ("in/**", ["in/b.txt", "in/deep/c.txt"]),
        ("*.t?t", ["a.txt"]),
        ("i[mn]/[a-c].txt", ["in/b.txt"]),
    ],
)
def test_a_pattern_names_what_a_shell_would(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("a.txt", "in/b.txt", "in/deep/c.txt", "in/.hidden/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    files, _ = files_of(str(tmp_path / pattern))
    assert [file.relative_to(tmp_path).as_posix() for file in files] == names
