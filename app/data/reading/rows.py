"""The rows of a file of any kind, one at a time;
a type is never guessed and nothing but the text's column is kept.
"""

import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from app.data.reading.packing import LARGEST, opened, wrong
from app.data.reading.paths import kind_of
from app.data.sources import first_line

# the line, or the row of a .json array or .parquet, from 1 on; what stands there
Numbered = tuple[int, object]
# a number of 5,000 digits in another column is none of our business
DECODER = json.JSONDecoder(parse_int=float)
BETWEEN = re.compile(r"[\s,]*")
# rows of a .parquet that are in memory at once
BATCH = 256
CURE = "mend or remove it"


def rows_of(path: Path, key: str) -> Iterator[Numbered]:
    """All rows of a file, with at least the column that `key` names: dictionaries, or texts.

    Raises:
        UserError: one cannot be read.
    """
    with opened(path) as stream:
        yield from READERS[kind_of(path)[0]](path, stream, key)


def lines(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """All lines, of UTF-8 with or without a byte order mark.

    Raises:
        UserError: one is not, or is too long.
    """
    number = 0
    while line := stream.readline(LARGEST):
        number += 1
        if len(line) == LARGEST:
            raise wrong(path, f"line {number:,} is longer than {LARGEST >> 20} MB", "cut it")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise wrong(
                path, f"line {number:,} is not UTF-8 ({_byte(error)})", "convert it to UTF-8"
            ) from error
        yield number, text


def _byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at {error.start + 1}"


def _json_lines(path: Path, stream: BinaryIO, key: str) -> Iterator[Numbered]:
    for number, line in lines(path, stream):
        if not line.isspace():
            try:
                value = DECODER.decode(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise wrong(path, f"line {number:,} {_why(error)}", CURE) from error
            yield number, value


def _why(error: json.JSONDecodeError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return f"is not JSON ({error.msg}, at {error.doc[error.pos : error.pos + 20]!r})"


def _json(path: Path, stream: BinaryIO, key: str) -> Iterator[Numbered]:
    """The items of an array, or values one after the other."""
    text = io.TextIOWrapper(stream, "utf-8-sig")
    buffer = _more(path, text, "")
    place = 0
    number = 0
    start = buffer.lstrip()
    buffer = start.removeprefix("[")
    closing = "]" if start.startswith("[") else ""
    while True:
        place = BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
        try:
            value, end = DECODER.raw_decode(buffer, place)
        except (json.JSONDecodeError, RecursionError) as error:
            rest = buffer[place:]
            buffer = _more(path, text, rest)
            place = 0
            if len(buffer) > LARGEST:
                what = f"row {number + 1:,} is longer than {LARGEST >> 20} MB, or no JSON"
                raise wrong(path, what, "cut or mend it") from error
            if len(buffer) == len(rest) or isinstance(error, RecursionError):
                if rest.strip() == closing:
                    return
                raise wrong(path, f"row {number + 1:,} {_why(error)}", CURE) from error
        else:
            number = number + 1
            place = end
            yield number, value


def _more(path: Path, text: TextIO, rest: str) -> str:
    """What was left, and as much again out of the file,
    so that a long row is not begun too often.
    """
    try:
        return rest + text.read(max(1 << 20, len(rest)))
    except UnicodeDecodeError as error:
        raise wrong(path, f"is not UTF-8 ({_byte(error)})", "convert it to UTF-8") from error


def _separated(mark: str) -> Callable[[Path, BinaryIO, str], Iterator[Numbered]]:
    """Of .csv and .tsv: the first row names the columns;
    a text may hold the mark or line ends inside of quotes.
    """

    def read(path: Path, stream: BinaryIO, key: str) -> Iterator[Numbered]:
        csv.field_size_limit(LARGEST)
        table = csv.reader((line for _, line in lines(path, stream)), delimiter=mark, strict=True)
        try:
            header = next(table, [])
            # a row may have several lines
            start = table.line_num + 1
            for values in table:
                if len(values) > len(header):
                    what = (
                        f"line {start:,} has {len(values)} columns and the first line {len(header)}"
                    )
                    raise wrong(path, what, 'put a text that holds the separator in "quotes"')
                if values:
                    yield start, dict(zip(header, values, strict=False))
                start = table.line_num + 1
        except csv.Error as error:
            raise wrong(path, f"line {start:,} is not readable ({error})", CURE) from error

    return read


def _parquet(path: Path, stream: BinaryIO, key: str) -> Iterator[Numbered]:
    """The column alone; where there is none, all of them, which shows what there is."""
    from pyarrow import ArrowException, parquet

    with _seekable(path, stream) as file:
        try:
            table = parquet.ParquetFile(file)
            leaves = [table.schema.column(place).path for place in range(len(table.schema))]
            found = any(f"{leaf}.".startswith(f"{key}.") for leaf in leaves)
            number = 0
            for batch in table.iter_batches(BATCH, columns=[key] if found else None):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ArrowException, OSError) as error:
            raise wrong(
                path, f"not readable as .parquet ({first_line(error)})", "give another file"
            ) from error


@contextmanager
def _seekable(path: Path, stream: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself, or unpacked where nobody sees it: parquet begins at its end."""
    if not kind_of(path)[1]:
        with path.open("rb") as plain:
            yield plain
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(stream, unpacked)
        yield cast(BinaryIO, unpacked)


READERS: dict[str, Callable[[Path, BinaryIO, str], Iterator[Numbered]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
