"""How a run went: the curves that it has logged, of TensorBoard's file or of the CSV's."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = ("Loss/train", "Loss/val_nats", "Loss/val_bpb")
Curve = list[tuple[int, float]]  # step, from 1, and value


def curves_of(folder: Path) -> dict[str, Curve]:
    """Those of TAGS that the run in this folder has logged;
    a file that breaks off is read as far as it goes.
    """
    found = _of_events(folder / "tb") or table_of(folder, TAGS)
    return {tag: found[tag] for tag in TAGS if found.get(tag)}


def _of_events(folder: Path) -> dict[str, Curve]:
    if not folder.exists():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = {*TAGS} & {*events.Tags()["scalars"]}
    return {tag: [(event.step + 1, event.value) for event in events.Scalars(tag)] for tag in tags}


def table_of(folder: Path, tags: Sequence[str]) -> dict[str, Curve]:
    """These curves of the CSV of a run, empty where one has no point; none without a CSV.

    A run that is being trained may have written half of its last line.
    """
    path = folder / "csv" / "metrics.csv"
    if not path.exists():
        return {}
    whole = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
    curves: dict[str, Curve] = {tag: [] for tag in tags}
    for row in rows_of(whole):
        for tag in tags:
            point = _point(row, tag)
            if point is not None:
                curves[tag].append(point)
    return curves


def rows_of(text: str) -> Iterator[dict[str, str | None]]:
    """Yield the rows of a CSV, as far as it can be read."""
    with suppress(csv.Error):  # a field of over 128 KB
        yield from csv.DictReader(io.StringIO(text, newline=""))


def _point(row: Mapping[str, str | None], tag: str) -> tuple[int, float] | None:
    """Step and value of a row; None where it has no value of the tag, or is damaged."""
    try:
        return int(row["step"] or "") + 1, float(row[tag] or "")
    except (KeyError, ValueError):
        return None
