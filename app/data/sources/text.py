"""The user's own files, of every usual kind: one file, a folder or a pattern."""

import io
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TextIO

from app.data.reading.column import TextColumn
from app.data.reading.packing import LARGEST, opened, wrong
from app.data.reading.paths import TEXT, files_of, kind_of
from app.data.reading.rows import lines, rows_of
from app.data.sources import BY_SIZE, Document, Once, in_order, split_of
from app.registry import UserError, register

# characters: a longer .txt is cut in order, a shorter one is one document
LONG = 64_000


@register("data")
class Text:
    """Reads files of text and of rows; a single or long text is split 94/3/3 in order, all else by
    hash.

    Args:
        path: a file, a folder or a pattern; what exists is never a pattern.
        text_key: the column that holds the text, where files have columns; a.b lies inside of a.
    """

    raw = False
    domains = ("text",)
    phases = BY_SIZE
    pinned: Mapping[str, object] = {}

    def __init__(self, *, path: str | None, text_key: str) -> None:
        self._path = path
        self._text_key = text_key
        self._tell = Once()

    def fingerprint(self) -> str:
        stats = [(path, path.stat()) for path in self._found[0]]
        return f"text {self._text_key} " + " ".join(
            f"{p.resolve()} {s.st_size} {s.st_mtime_ns}" for p, s in stats
        )

    def documents(self) -> Iterator[Document]:
        files, passed_over = self._found
        self._tell(passed_over)
        root = os.path.commonpath([path.parent for path in files])
        column = TextColumn(self._text_key, f"data.path={self._path}", blank_lines=False)
        for path in files:
            name = path.relative_to(root).as_posix()
            if kind_of(path)[0] in TEXT:
                yield from _text(path, name, column, alone=len(files) == 1)
            else:
                yield from self._rows(path, name, column)
        self._tell(column.finish())

    def _rows(self, path: Path, name: str, column: TextColumn) -> Iterator[Document]:
        for number, row in rows_of(path, self._text_key):
            text = column.text(path, number, row)
            if text is not None:
                key = f"{name}/{number}"
                yield Document(key, text, "text", None, split_of(key))

    @cached_property
    def _found(self) -> tuple[list[Path], str]:
        if not self._path:
            raise UserError(
                "data.path=null: data=text needs text; set data.path=FILE, FOLDER or 'GLOB'"
            )
        return files_of(self._path)


def _text(path: Path, name: str, column: TextColumn, alone: bool) -> Iterator[Document]:
    """A file of text: one document, or its parts in order."""
    with _characters(path) as text:
        head = text.read(LARGEST)
        total = len(head) + sum(map(len, iter(partial(text.read, 1 << 20), "")))
    if "\0" in head:
        raise wrong(path, "not text (it has zero bytes)", "give another file")
    if column.text(path, None, head) is None:
        return
    if not alone and total <= LONG:
        yield Document(name, head, "text", None, split_of(name))
        return
    with _characters(path) if total > len(head) else io.StringIO(head) as text:
        for number, (split, part) in enumerate(in_order(text, total, LARGEST)):
            yield Document(f"{name}/{number}", part, "text", None, split)


@contextmanager
def _characters(path: Path) -> Iterator[TextIO]:
    """A file of UTF-8, with or without a byte order mark; all its line ends are \n."""
    with opened(path) as stream:
        try:
            yield io.TextIOWrapper(stream, "utf-8-sig")
        except UnicodeDecodeError as error:
            with opened(path) as again:
                deque(lines(path, again))  # tells the line
            raise wrong(path, "not UTF-8", "convert it to UTF-8") from error
