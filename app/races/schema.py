"""The schema of the records of a study: results are computed from them without further checks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.registry import UserError

POSITIVE = ("bpb", "nats", "tokens_seen", "peak_memory_bytes", "total_params", "active_params")
Record = Mapping[str, Any]


def problem_of(record: Record) -> str | None:
    """Return the problem of a record, which holds the reason of a failure or all results;
    None if it has none.
    """
    if "failed" in record:
        return None if isinstance(record["failed"], str) else "failed must be the reason as a text"
    for name in POSITIVE:
        if not is_positive(record.get(name)):
            return f"{name}={record.get(name)} must be a number above 0"
    domains = record.get("domains")
    curve = record.get("curve")
    routing = record.get("routing")
    if not isinstance(domains, dict) or not domains or not all(map(is_positive, domains.values())):
        return "domains must hold bits per byte by domain"
    if not isinstance(curve, list) or not curve or not all(map(_is_point, curve)):
        return "curve must be a list of steps and bits per byte"
    if routing is not None and not (
        isinstance(routing, dict) and all(map(is_number, routing.values()))
    ):
        return "routing must hold numbers, or be null"
    # older records of tuning trials have none
    if not is_positive(record.get("flops", 1)):
        return f"flops={record['flops']} must be a number above 0"
    if not isinstance(record.get("optimizer", ""), str):  # older records have none
        return f"optimizer={record['optimizer']} must be a text"
    if not isinstance(record.get("torch"), str):
        return f"torch={record.get('torch')} must be a version"
    return None


def problem_of_place(line: Record) -> str | None:
    """Return the problem of the place of a record (variant, size, learning rate, seed, share);
    None if it has none.
    """
    if not all(isinstance(line.get(name), str) for name in ("contestant", "size")):
        return "contestant and size must be texts"
    # a variant that was refused before any trial
    if "key" not in line:
        return None if isinstance(line.get("failed"), str) else "key must be a text"
    if not isinstance(line["key"], str) or type(line.get("seed")) is not int:
        return "key must be a text, and seed a whole number"
    if not is_number(line.get("lr")) or line["lr"] < 0 or not is_positive(line.get("share")):
        return "lr must be at least 0, and share above 0"
    return None


def require_comparable(
    path: Path, sizes: Sequence[str], tuning_seed: int, lines: Sequence[Record]
) -> None:
    """Check that the records of a study can be put into one table.

    Raises:
        UserError: A size is unknown, domains differ, or the trials of a variant differ in what they
            hold.
    """
    first: dict[tuple[str, ...], Record] = {}
    for line in lines:
        if line["size"] not in sizes:
            raise UserError(
                f"{path}: size={line['size']} is none of the study ({', '.join(sizes)}); restore "
                "the file"
            )
        if "failed" in line or line["seed"] == tuning_seed:
            continue
        if "flops" not in line:
            raise UserError(
                f"{path}: a trial of {line['contestant']} has no flops; restore the file"
            )
        variant = (line["size"], line["contestant"], str(line["share"]))
        for group, layout in (((line["size"],), _domains(line)), (variant, _layout(line))):
            if first.setdefault(group, layout) != layout:
                raise UserError(
                    f"{path}: the trials of {' '.join(group)} do not hold the same domains, "
                    "statistics and curves; restore the file"
                )


def _domains(line: Record) -> Record:
    return {"domains": [*line["domains"]]}


def _layout(line: Record) -> Record:
    routing = None if line["routing"] is None else [*line["routing"]]
    return {"routing": routing, "points": len(line["curve"])}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_point(value: Any) -> bool:
    """A step from 1, and bits per byte."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and type(value[0]) is int
        and all(map(is_positive, value))
    )
