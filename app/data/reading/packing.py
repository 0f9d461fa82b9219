"""The bytes of a file, unpacked as they are read; what is wrong with a file in one line."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.data.reading.paths import kind_of
from app.registry import UserError

# bytes: what unpacks to more than this and
MOST = 1 << 30
# times its own size is no text
RATIO = 200
# bytes or characters of one document
LARGEST = 1 << 28


def _zstd(raw: BinaryIO) -> object:
    import pyarrow

    return pyarrow.CompressedInputStream(raw, "zstd")


UNPACK: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".zst": _zstd,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


def wrong(path: Path, what: str, cure: str) -> UserError:
    """The error of a file."""
    return UserError(f"data.path={path}: {what}; {cure}")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file.

    Raises:
        UserError: it cannot be read, is damaged, or unpacks to far more than a text does; also
            later, while it is read.
    """
    packing = kind_of(path)[1]
    try:
        with path.open("rb") as raw:
            unpacked = UNPACK[packing](raw) if packing else raw
            yield cast(BinaryIO, io.BufferedReader(_Measured(path, unpacked), 1 << 20))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None):
            raise wrong(path, f"cannot be read ({error.strerror})", "make it readable") from error  # type: ignore[union-attr]
        raise wrong(
            path, f"not a whole {packing} file ({error})", "pack it anew, or give another file"
        ) from error


class _Measured(io.RawIOBase):
    """Hands bytes on, and stops where a file unpacks to what can
    only be meant to fill the memory.
    """

    def __init__(self, path: Path, inner: BinaryIO) -> None:
        self._path = path
        self._inner = inner
        self._size = 0
        self._limit = max(MOST, RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self._size += len(data)
        if self._size > self._limit:
            raise wrong(
                self._path,
                f"unpacks to over {RATIO} times its size",
                "unpack it, and look at what it is",
            )
        return len(data)
