"""What papers claim, and what was seen here: the table of docs/claims.md, of claims.yaml and the results of races."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from app.pages.races import folders, read
from app.races.race import Race
from app.races.result import ended, paired, runs
from app.races.statistics import Judged, judged

CLAIMS = Path(__file__).with_suffix(".yaml")
Claim = dict[str, Any]


def markdown() -> str:
    """A line for each claim; the verdicts of one race are corrected for their number."""
    claims: list[Claim] = yaml.safe_load(CLAIMS.read_text())
    seen = _seen(claims)
    names = ("paper", "claim", "figure", "race, size", "seen here, bits per byte", "seeds", "verdict")
    head = f"| {' | '.join(names)} |\n" + "| --- " * len(names) + "|\n"
    return head + "".join(line for place, claim in enumerate(claims) for line in _lines(claim, seen[place]))


def _seen(claims: list[Claim]) -> dict[int, dict[str, tuple[Judged, int]]]:
    """What was found, and on how many seeds, by the place of the claim and size."""
    found: dict[int, dict[str, tuple[Judged, int]]] = defaultdict(dict)
    for folder in folders():
        race, lines = read(folder)
        for size in race.sizes:
            here = [line for line in lines if line["size"] == size]
            mine = {str(i): (c["one"], c["other"]) for i, c in enumerate(claims) if c.get("race") == folder.name}
            pairs = {i: values for i, pair in mine.items() if (values := _differences(race, here, *pair))}
            for i, verdict in judged(pairs, race.margin, len(mine)).items():
                found[int(i)][size] = verdict, len(pairs[i])
    return found


def _differences(race: Race, lines: list[dict[str, Any]], one: str, other: str) -> list[float]:
    """Paired by seed; none while a seed is still to run."""
    if not ended(race, lines, one, other):
        return []
    return paired(race, runs(race, lines, one), runs(race, lines, other), race.measure)


def _lines(claim: Claim, seen: dict[str, tuple[Judged, int]]) -> list[str]:
    told = f"| {claim['paper']} ({claim['where']}) | {claim['claim']} | {claim.get('number', '')} |"
    if "race" not in claim:
        return [f"{told} | | | cannot be run here |\n"]
    if not seen:
        return [f"{told} {claim['race']} | | | not finished yet |\n"]
    return [
        f"{told} {claim['race']}, {size} | {_difference(found)} | {seeds} | {_verdict(claim, found)} |\n"
        for size, (found, seeds) in seen.items()
    ]


def _difference(found: Judged) -> str:
    mean, half = found.difference
    return f"{mean:+.3f}" + (f" ± {half:.3f}" if half is not None else "")


def _verdict(claim: Claim, found: Judged) -> str:
    if found.verdict == "cannot tell":
        return "cannot tell at this size"
    if found.verdict == claim["expected"]:
        return "supported"
    if found.verdict == "equivalent" and claim.get("below_margin"):
        return "level within the margin"
    return f"contradicted: {found.verdict}"
