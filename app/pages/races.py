"""The results of all races, a line each, for the README."""

import json
from collections.abc import Iterator
from pathlib import Path

from app.pages.markers import ROOT
from app.races.page import write_result
from app.races.race import Race, read_race
from app.races.records import DEFINITION, MEMBERS, RESULTS, read_lines, read_seconds
from app.races.result import Difference, Result, Row, result_of
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


def again(folder: Path) -> tuple[Race, Result]:
    """A race, and its result out of its records."""
    race, lines = read(folder)
    return race, result_of(race, lines, read_seconds(folder))


def write() -> None:
    """The pages, tables and pictures in the folders of results anew."""
    for folder in folders():
        write_result(folder, *again(folder))


def read(folder: Path) -> tuple[Race, list[dict[str, object]]]:
    """What a race is, and its records."""
    race = read_race(json.loads((folder / DEFINITION).read_text())["race"])
    return race, read_lines(folder / MEMBERS)


def _lines(folder: Path) -> Iterator[str]:
    race, result = again(folder)
    name = f"[{folder.name}](results/{folder.name}/README.md) against {escaped(race.baseline)}"
    for size, numbers in result.items():
        found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
        for row in numbers.rows:
            if row.difference is not None and row.difference.verdict in found:
                found[row.difference.verdict].append(_short(row, row.difference))
        seeds = f"{len(race.seeds)}"
        if numbers.missing:
            seeds += f", {numbers.missing} runs missing"
        cells = [", ".join(contestants) for contestants in found.values()]
        detectable = f"{numbers.noise.detectable[5]:.3f}" if numbers.noise else ""
        yield f"| {name} | {size}, {seeds} | {' | '.join(cells)} | {detectable} |\n"


def _short(row: Row, difference: Difference) -> str:
    return f"{escaped(row.contestant)} {difference.bpb.mean:+.3f}"
