"""The small files of a run: whole or absent whatever happens, and read back with one line if they are damaged."""

import os
from pathlib import Path

from app.registry import UserError


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file under another name and, once it is on the disk, gives it its own, for good; leaves an equal one."""
    data = data.encode() if isinstance(data, str) else data
    if path.is_file() and path.read_bytes() == data:
        return
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    settle(path.parent)


def settle(folder: Path) -> None:
    """Brings the names in a folder to the disk: a file that has got one keeps it through a power cut."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


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
        raise UserError(f"{path}: is damaged: it is no text; restore it, or choose another run") from error
