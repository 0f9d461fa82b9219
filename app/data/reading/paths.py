"""Which files a path names: what exists is meant as it is written;
only what does not may be a pattern or `~`.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from app.registry import UserError

TEXT = (".txt", ".md")
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".zst", ".bz2", ".xz")
KINDS = f"{' '.join((*TEXT, *ROWS))}, each also {' '.join(PACKED)}"
NOT_DATA = {"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini"}  # and all hidden ones


def kind_of(path: Path) -> tuple[str, str]:
    """What a file holds and how it is packed, in small letters: (".jsonl", ".gz") of A.JSONL.gz."""
    suffix = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), suffix) if suffix in PACKED else (suffix, "")


def home(path: str, key: str) -> Path:
    """The path; `~` is the home folder unless something has that very name.

    Raises:
        UserError: there is no home folder.
    """
    if os.path.lexists(path):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{key}={path}: no home folder is known here; write the path out, or set HOME"
        ) from error


def files_of(path: str) -> tuple[list[Path], str]:
    """The files that are read, sorted, and what is to be said of those in a folder or a pattern
    that are not.

    Raises:
        UserError: there is none, or a folder cannot be read.
    """
    root = home(path, "data.path")
    if root.is_file():
        return [_readable(root)], ""
    if not root.is_dir() and not glob.has_magic(path):
        raise UserError(
            f"data.path={path}: no such file or folder; give a FILE, FOLDER or 'GLOB' of text"
        )
    found = sorted(_inside(root) if root.is_dir() else _matching(root))
    files = [file for file in found if file.is_file() and kind_of(file)[0] in (*TEXT, *ROWS)]
    others = _kinds(set(found) - set(files))
    if not files:
        raise UserError(
            f"data.path={path}: no text in it{others}; the kinds that are read: {KINDS}"
        )
    return files, (
        f"data.path={path}: passed over {len(found) - len(files):,} files{others}"
    ) if others else ""


def _readable(file: Path) -> Path:
    kind, packing = kind_of(file)
    if kind not in (*TEXT, *ROWS):
        what = f"files of kind {kind}{packing} are" if kind else "a file without a kind is"
        raise UserError(
            f"data.path={file}: {what} not read; if it is plain text, name it "
            f"{file.name.removesuffix(packing)}.txt{packing}; the kinds that are read: {KINDS}"
        )
    return file


def _kinds(files: Iterable[Path]) -> str:
    """How many there are of each kind."""
    kinds = Counter(
        "broken links" if not file.exists() else kind_of(file)[0] or "without a kind"
        for file in files
    )
    return (
        (f" ({', '.join(f'{number:,} {kind}' for kind, number in sorted(kinds.items()))})")
        if kinds
        else ""
    )


def _matching(pattern: Path) -> Iterator[Path]:
    """All files that a pattern matches."""
    if "**" not in pattern.parts:
        return (path for path in map(Path, glob.glob(str(pattern))) if not path.is_dir())  # noqa: PTH207  takes any path
    fixed = list(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    base = Path(*fixed)
    rest = pattern.parts[len(fixed) :]
    return (file for file in _inside(base) if _matches(file.relative_to(base).parts, rest))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is of the pattern, whose part `**` stands for any folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _inside(folder: Path) -> Iterator[Path]:
    """All files below a folder that are not hidden."""
    for inner, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        folders[:] = [
            name for name in folders if _is_data(name) and not _leads_back(Path(inner, name))
        ]
        yield from (Path(inner, name) for name in names if _is_data(name))


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it lies in; all others are followed."""
    return folder.is_symlink() and os.path.realpath(folder) in map(os.path.realpath, folder.parents)


def _is_data(name: str) -> bool:
    return not name.startswith((".", "~$")) and name not in NOT_DATA


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"data.path={error.filename}: cannot be read ({error.strerror}); make it readable"
    ) from error
