"""What papers claim, and what was seen here:
the table of docs/claims.md, of claims.yaml and the results of races.
"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from app.pages.races import folders, read
from app.races.race import Race
from app.races.result import ended, paired, runs
from app.races.statistics import Judged, judged
from app.races.tables import told

CLAIMS = Path(__file__).with_suffix(".yaml")
Claim = dict[str, Any]


def markdown() -> str:
    """Return the table, a line for each claim."""
    claims: list[Claim] = yaml.safe_load(CLAIMS.read_text())
    seen = _seen(claims)
    columns = ("paper", "claim", "figure", "race, size", "seen here, bits per byte", "seeds")
    head = f"| {' | '.join((*columns, 'verdict'))} |\n" + "| --- " * (len(columns) + 1) + "|\n"
    lines = []
    for place, claim in enumerate(claims):
        lines += _lines(claim, seen[place])
    return head + "".join(lines)


class Seen(NamedTuple):
    """What a race has found about a claim, at one size."""

    found: Judged
    seeds: int
    # experts a token that `one` takes beyond `other`, where it is to take fewer
    surplus: float | None


def _seen(claims: list[Claim]) -> dict[int, dict[str, Seen]]:
    """Return what the races have found, by the place of the claim and the size."""
    seen: dict[int, dict[str, Seen]] = defaultdict(dict)
    for folder in folders():
        race, lines = read(folder)
        places = [place for place, claim in enumerate(claims) if claim.get("race") == folder.name]
        for size in race.sizes:
            at_size = [line for line in lines if line["size"] == size]
            for place, found in _seen_at_size(race, at_size, claims, places).items():
                seen[place][size] = found
    return seen


def _seen_at_size(
    race: Race, lines: list[dict[str, Any]], claims: list[Claim], places: list[int]
) -> dict[int, Seen]:
    """Return what one size of a race has found of the claims at these places.

    The verdicts are corrected for the number of claims about the race, also for those whose runs
    have not ended yet.
    """
    differences: dict[str, list[float]] = {}
    for place in places:
        claim = claims[place]
        paired_by_seed = _differences(race, lines, claim["one"], claim["other"])
        if paired_by_seed:
            differences[str(place)] = paired_by_seed
    seen = {}
    for key, verdict in judged(differences, race.margin, len(places)).items():
        claim = claims[int(key)]
        surplus = None
        if claim.get("fewer_experts"):
            surplus = _surplus(race, lines, claim["one"], claim["other"])
        seen[int(key)] = Seen(verdict, len(differences[key]), surplus)
    return seen


def _surplus(race: Race, lines: list[dict[str, object]], one: str, other: str) -> float:
    """Return how many experts a token takes more under `one`, over the training and the seeds."""
    mean_k = {}
    for name in (one, other):
        mean_k[name] = fmean(run["routing"]["mean_k"] for run in runs(race, lines, name).values())
    return mean_k[one] - mean_k[other]


def _differences(race: Race, lines: list[dict[str, object]], one: str, other: str) -> list[float]:
    """Paired by seed; none while a seed is still to run."""
    if not ended(race, lines, one, other):
        return []
    return paired(race, runs(race, lines, one), runs(race, lines, other), race.measure)


def _lines(claim: Claim, seen: dict[str, Seen]) -> list[str]:
    """Return the lines of a claim, one for each size at which it was seen."""
    start = (
        f"| {claim['paper']} ({claim['where']}) | {claim['claim']} | {claim.get('number', '')} |"
    )
    if "race" not in claim:
        return [f"{start} | | | cannot be run here |\n"]
    if not seen:
        return [f"{start} {claim['race']} | | | not finished yet |\n"]
    lines = []
    for size, found in seen.items():
        difference = _difference(found.found)
        verdict = _verdict(claim, found)
        lines.append(
            f"{start} {claim['race']}, {size} | {difference} | {found.seeds} | {verdict} |\n"
        )
    return lines


def _difference(found: Judged) -> str:
    return told(found.difference, 3, sign=True)


def _verdict(claim: Claim, seen: Seen) -> str:
    found = seen.found
    if seen.surplus is not None and seen.surplus >= 0:
        return f"contradicted: {found.verdict}, with {seen.surplus:.1f} experts more"
    if found.verdict == "cannot tell":
        return "cannot tell at this size"
    if found.verdict == claim["expected"]:
        return "supported"
    if found.verdict == "equivalent" and claim.get("below_margin"):
        return "level within the margin"
    return f"contradicted: {found.verdict}"
