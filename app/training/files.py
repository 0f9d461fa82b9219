"""The files of a run: whole or absent whatever happens,
and small ones read back with one line if they are damaged.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from app.fault_points import fault_point
from app.registry import UserError

T = TypeVar("T")
# The content of a checkpoint, in Lightning's layout.
Checkpoint = dict[str, Any]


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file under another name and, once it is on the disk, gives it its own, for good;
    leaves an equal one.
    """
    data = data.encode() if isinstance(data, str) else data
    if path.is_file() and path.read_bytes() == data:
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fault_point(f"replace {path.name}")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    settle(path.parent)


def replace_files(folder: Path, files: Mapping[str, str | bytes], stale: str) -> None:
    """Write the files of a page: all of them, or none.

    Args:
        folder: Made if there is none.
        files: Their contents by name.
        stale: A glob of files of an earlier page, which are removed unless they are written again.

    Raises:
        OSError: The folder cannot be written; it is as it was.
    """
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        for file, data in files.items():
            write_whole(Path(name) / file, data)
        for file in files:
            (Path(name) / file).replace(folder / file)
    for old in folder.glob(stale):
        if old.name not in files:
            old.unlink()


def settle(folder: Path) -> None:
    """Brings the names in a folder to the disk:
    a file that has got one keeps it through a power cut.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def remove(path: Path) -> None:
    """Removes a file or a folder, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checksum(path: Path) -> Path:
    """Where the sum of a file stands, or those of the files of a folder."""
    return path.with_suffix(".sha256")


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder that of each file, as `sums` lists them."""
    if path.is_dir():
        return sums({file.name: digest(file) for file in path.iterdir()})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(known: Mapping[str, str]) -> str:
    """Sums by name, as `sha256sum --check` reads them inside of the folder."""
    return "\n".join(f"{known[name]}  {name}" for name in sorted(known))


def read_whole(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: there is none, or it is a folder or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is damaged: it is no text; restore it, or choose another run"
        ) from error


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file, which end with a line feed and nothing else:
    U+2028 is part of a line.
    """
    return [line.removesuffix("\r") for line in read_whole(path).removesuffix("\n").split("\n")]


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON can spell half of a surrogate pair,
    which is no letter.
    """
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_json(path: Path, kind: type[T]) -> T:
    """Return the value in a JSON file.

    Args:
        path: The file.
        kind: `dict` or `list`: the type of the whole value.

    Raises:
        UserError: The file cannot be read, is not JSON, holds another type, or holds half of a
            surrogate pair, which no later output could encode.
    """
    try:
        value = json.loads(read_whole(path))
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise UserError(
            f"{path}: is damaged: {' '.join(str(error).split())}; restore it"
        ) from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise UserError(f"{path}: is damaged: it must hold {expected}; restore it")
    return value
