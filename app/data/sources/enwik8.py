"""The byte-level benchmarks enwik8 and text8 (Mahoney 2006):
bytes 90M / 5M / 5M, measured in bits per character.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from app.data.reading.packing import opened
from app.data.reading.paths import home
from app.data.sources import BY_SIZE, SPLITS, Document
from app.registry import UserError, register


@register("data")
class Enwik8:
    """Cuts one file into three documents, one a split, by position; no symbol ends a document.

    Args:
        path: the unpacked file, or .gz .zst .bz2 .xz.
        sizes: bytes of train, val and test, in the order of the file; at least 1 each.

    Raises:
        ValueError: a knob is out of its range.
    """

    raw = True
    domains = ("enwik8",)
    phases = BY_SIZE
    pinned: Mapping[str, object] = {}

    def __init__(self, *, path: str | None, sizes: list[int]) -> None:
        if len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(f"sizes={sizes}: must be three numbers of bytes: train, val, test")
        self._path = home(path or "", "data.path")
        self._named = path
        self._sizes = sizes

    def fingerprint(self) -> str:
        stat = self._file().stat()
        return f"enwik8 {self._path.resolve()} {stat.st_size} {stat.st_mtime_ns} {self._sizes}"

    def documents(self) -> Iterator[Document]:
        with opened(self._file()) as stream:
            data = stream.read(sum(self._sizes))
        if len(data) < sum(self._sizes):
            raise UserError(
                f"data.path={self._path}: has {len(data):,} of {sum(self._sizes):,} bytes; give "
                "the whole file or set data.sizes=[TRAIN,VAL,TEST]"
            )
        ends = list(accumulate(self._sizes, initial=0))
        for split, start, stop in zip(SPLITS, ends, ends[1:], strict=False):
            yield Document(split, data[start:stop], "enwik8", None, split)

    def _file(self) -> Path:
        if not self._named:
            raise UserError(
                "data.path=null: data=enwik8 needs the unpacked file; set data.path=FILE"
            )
        if not self._path.is_file():
            raise UserError(
                f"data.path={self._path}: no such file; set data.path to the unpacked enwik8"
            )
        return self._path
