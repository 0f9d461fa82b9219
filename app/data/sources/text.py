"""The user's own files: .txt, .jsonl, .parquet, each also .gz; one file, a folder or a glob."""

import glob
import gzip
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.data.sources import Document, first_line, in_order, read_dataset, split_of
from app.registry import UserError, register

LONG = 64_000  # characters: a longer .txt is cut in order, a shorter one is one document
LOADERS = {".jsonl": "json", ".parquet": "parquet"}
KINDS = (".txt", *LOADERS)


@register("data")
class Text:
    """Reads .txt, .jsonl and .parquet, each also .gz; a single or long .txt is split 94/3/3 in order, all else by hash.

    Args:
        path: a file, a folder or a glob.
        text_key: the column of .jsonl and .parquet that holds the text.
    """

    raw = False
    domains = ("text",)
    weights = None
    versions: Mapping[str, str] = {}

    def __init__(self, *, path: str | None, text_key: str) -> None:
        self._path = path
        self._text_key = text_key

    def fingerprint(self) -> str:
        stats = [(path, path.stat()) for path in self._files()]
        return f"text {self._text_key} " + " ".join(f"{p.resolve()} {s.st_size} {s.st_mtime_ns}" for p, s in stats)

    def documents(self) -> Iterator[Document]:
        files = self._files()
        root = os.path.commonpath([path.parent for path in files])
        for path in files:
            name, kind = path.relative_to(root).as_posix(), _kind(path)
            yield from self._rows(path, name, kind) if kind in LOADERS else self._document(path, name, len(files) == 1)

    def _document(self, path: Path, name: str, alone: bool) -> Iterator[Document]:
        text = _read(path)
        if not text.strip():
            raise _empty(path)
        if alone or len(text) > LONG:
            for split, part in in_order(text):
                yield Document(f"{name}/{split}", part, "text", None, split)
        else:
            yield Document(name, text, "text", None, split_of(name))

    def _rows(self, path: Path, name: str, kind: str) -> Iterator[Document]:
        if not path.stat().st_size:
            raise _empty(path)
        try:
            for number, row in enumerate(_read_rows(path, kind)):
                key = f"{name}/{number}"
                yield Document(key, self._text(path, row), "text", None, split_of(key))
        except UserError:
            raise
        except Exception as error:  # each reader has its own errors
            raise UserError(
                f"data.path={path}: not readable as {kind} ({first_line(error)}); convert the file"
            ) from error

    def _text(self, path: Path, row: dict[str, Any]) -> str:
        if not isinstance(row.get(self._text_key), str):
            raise UserError(
                f"data.text_key={self._text_key}: no text under this key in {path}; set data.text_key to one of "
                f"{', '.join(key for key, value in row.items() if isinstance(value, str)) or 'its text columns'}"
            )
        return str(row[self._text_key])

    def _files(self) -> list[Path]:
        if not self._path:
            raise UserError("data.path=null: data=text needs text; set data.path=FILE, FOLDER or 'GLOB'")
        root = Path(self._path).expanduser()
        if root.is_file():
            return [root]
        found = root.rglob("*") if root.is_dir() else map(Path, glob.glob(str(root), recursive=True))  # noqa: PTH207
        files = sorted(path for path in found if path.is_file() and _kind(path) in KINDS)
        if not files:
            what = f"no {', '.join(KINDS)} (or .gz of these) in it" if root.exists() else "no such file or folder"
            raise UserError(f"data.path={self._path}: {what}; give a FILE, FOLDER or 'GLOB' of text")
        return files


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read_rows(path: Path, kind: str) -> Iterable[dict[str, Any]]:
    if kind == ".parquet" and path.suffix == ".gz":  # `datasets` does not unzip these
        from pyarrow import BufferReader, parquet

        return parquet.read_table(BufferReader(gzip.decompress(path.read_bytes()))).to_pylist()
    return read_dataset(LOADERS[kind], data_files=str(path), split="train", streaming=True)


def _empty(path: Path) -> UserError:
    return UserError(f"data.path={path}: the file is empty; give a file with text")


def _read(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"data.path={path}: not UTF-8 text ({error}); convert it, or give another file") from error
    if "\0" in text:
        raise UserError(f"data.path={path}: not text (it has zero bytes); give another file")
    return text
