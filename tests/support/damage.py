"""Random damage to files that somebody else may have written,
and the check that a command survives it.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from app.registry import NO_WRITE, UserError
from app.training.files import checksum, digest

ODD: list[Any] = [
    None,
    True,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1.5,
    1e400,
    2**70,
    "${oc.env:HOME}",
    "\ud800",
    "../../x",
    [[]],
    {"_target_": "os.system"},
    "a\nb",
    "\u2028",
    [None],
    10**12,
]
GARBAGE = [
    b"",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"{}",
    b"[" * 50_000,
    b"{" * 3,
    b"a: &a [*a, *a]",
    b"2020-99-99",
    b"\n\n",
    b'{"a": NaN}',
    b"- --multirun\n",
    b"PK\x03\x04",
]


def damage(file: Path, chance: random.Random) -> str:
    """Damage a file in one of many ways; return what was done."""
    text = file.suffix in (".json", ".yaml", ".jsonl")
    how = chance.choice(
        [
            "garbage",
            "cut",
            "bytes",
            "missing",
            "folder",
            *(["leaf"] * 12 if text else ["bytes"] * 3),
        ]
    )
    data = file.read_bytes()
    if how == "leaf":
        return _change_leaf(file, data, chance)
    file.unlink()
    if how == "garbage":
        file.write_bytes(chance.choice(GARBAGE))
    elif how == "cut":
        file.write_bytes(data[: chance.randrange(len(data) + 1)])
    elif how == "bytes":
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 9) if data else 0):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        file.write_bytes(changed)
    elif how == "folder":
        file.mkdir()
    return f"{how} in {file.name}"


def _change_leaf(file: Path, data: bytes, chance: random.Random) -> str:
    """Put an odd value in the place of a random value of a JSON or YAML file."""
    lines = data.decode().splitlines() if file.suffix == ".jsonl" else [data.decode()]
    number = chance.randrange(len(lines)) if lines else 0
    values = yaml.safe_load(lines[number]) if file.suffix == ".yaml" else json.loads(lines[number])
    places = list(_places(values))
    if not places:
        return "nothing"
    owner, key = chance.choice(places)
    owner[key] = chance.choice(ODD)
    lines[number] = yaml.safe_dump(values) if file.suffix == ".yaml" else json.dumps(values)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    return f"{key}={owner[key]!r} in {file.name}"


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    pairs = (
        values.items()
        if isinstance(values, dict)
        else enumerate(values)
        if isinstance(values, list)
        else ()
    )
    for key, value in list(pairs):
        yield values, key
        yield from _places(value)


def seal(run: Path) -> None:
    """Give every checkpoint of a run the checksum of what it now holds,
    as somebody who means harm would.
    """
    for path in (run / "checkpoints").glob("*.ckpt"):
        if path.exists() and not checksum(path).is_dir():
            checksum(path).write_text(digest(path) + "\n")


@contextmanager
def survived(what: str) -> Iterator[None]:
    """Check that what runs inside ends well, or with an error of one line."""
    GlobalHydra.instance().clear()
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException):
        # `exit_on_mistake` makes one line of them
        pass
    except SystemExit as end:
        assert end.code in (0, 2, None), f"{what}: exit code {end.code}"
    # reported in one line by `exit_on_mistake`
    except OSError as error:
        assert error.errno in NO_WRITE, f"{what}: {error!r}"
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def copy_of(folder: Path, place: Path) -> Path:
    """A fresh copy of a folder."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder, place))


Command = Callable[[Path], Any]
