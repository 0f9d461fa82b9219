"""Text files of every kind that is read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
from pyarrow import parquet

from tests.conftest import ROOT

PAGE = (ROOT / "docs/data.md").read_text()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "nothing": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


Rows = list[Any]


def table(number: int) -> Iterator[list[str]]:
    """The rows of one of the two tables of troubles."""
    tables = re.findall(r"(?:^\|.*\n)+", PAGE.partition("<!-- troubles -->")[2], flags=re.MULTILINE)
    return (
        [cell.strip() for cell in line[1:-1].split(" | ")]
        for line in tables[number].splitlines()[2:]
    )


def written(kind: str, rows: Rows) -> bytes:
    """Rows as a file of this kind."""
    match kind:
        case ".txt" | ".md":
            return "\n".join(row["text"] for row in rows).encode()
        case ".json":
            return json.dumps(rows, indent=1).encode()
        case ".csv" | ".tsv":
            table = csv.writer(
                out := io.StringIO(newline=""), delimiter="," if kind == ".csv" else "\t"
            )
            table.writerows([list(rows[0]), *(row.values() for row in rows)])
            return out.getvalue().encode()
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), buffer := io.BytesIO())
            return buffer.getvalue()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
