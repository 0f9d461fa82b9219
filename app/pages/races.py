"""The results of all races, a line each, for the README."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.pages.markers import ROOT
from app.races.page import write_result
from app.races.race import Race, read_race
from app.races.records import DEFINITION, MEMBERS, RESULTS, read_lines, read_seconds
from app.races.result import result_of
from app.training.markdown import escaped

VERDICTS = ("better", "equivalent", "worse", "cannot tell")


def markdown() -> str:
    """What was found against each baseline; the figures are in the folders of the results."""
    head = (
        "| race | size, seeds | "
        + " | ".join(VERDICTS)
        + " | seen with 5 seeds |\n"
        + ("| --- ") * 7
        + "|\n"
    )
    return head + "".join(line for folder in folders() for line in _lines(folder))


def folders() -> list[Path]:
    """Return the folders of all races with records, also of those that still run."""
    return sorted(path.parent for path in (ROOT / RESULTS).glob(f"*/{MEMBERS}"))


def again(folder: Path) -> tuple[Race, dict[str, Any]]:
    """A race, and its result out of its records."""
    race, lines = read(folder)
    return race, result_of(race, lines, read_seconds(folder))


def write() -> None:
    """The pages, tables and pictures in the folders of results anew."""
    for folder in folders():
        write_result(folder, *again(folder))


def read(folder: Path) -> tuple[Race, list[dict[str, Any]]]:
    """What a race is, and its records."""
    race = read_race(json.loads((folder / DEFINITION).read_text())["race"])
    return race, read_lines(folder / MEMBERS)


def _lines(folder: Path) -> Iterator[str]:
    race, result = again(folder)
    for size, numbers in result.items():
        rows = [row for row in numbers["rows"] if row.get("verdict")]
        found = [
            ", ".join(_short(row) for row in rows if row["verdict"] == verdict)
            for verdict in VERDICTS
        ]
        noise = f"{numbers['noise']['detectable']['5']:.3f}" if numbers["noise"] else ""
        left = f", {numbers['missing']} runs missing" if numbers["missing"] else ""
        name = f"[{folder.name}](results/{folder.name}/README.md) against {escaped(race.baseline)}"
        yield f"| {name} | {size}, {len(race.seeds)}{left} | {' | '.join(found)} | {noise} |\n"


def _short(row: dict[str, Any]) -> str:
    return f"{escaped(row['contestant'])} {row['difference']['bpb']['mean']:+.3f}"
