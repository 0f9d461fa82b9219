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

CLAIMS = Path(__file__).with_suffix(".yaml")
Claim = dict[str, Any]


def markdown() -> str:
    """A line for each claim; the verdicts of one race are corrected for their number."""
    claims: list[Claim] = yaml.safe_load(CLAIMS.read_text())
    seen = _seen(claims)
    names = (
        "paper",
        "claim",
        "figure",
        "race, size",
        "seen here, bits per byte",
        "seeds",
        "verdict",
    )
    head = f"| {' | '.join(names)} |\n" + "| --- " * len(names) + "|\n"
    return head + "".join(
        line for place, claim in enumerate(claims) for line in _lines(claim, seen[place])
    )


class Seen(NamedTuple):
    """What a race has found about a claim, at one size."""

    found: Judged
    seeds: int
    # experts a token that `one` takes beyond `other`, where it is to take fewer
    surplus: float | None


def _seen(claims: list[Claim]) -> dict[int, dict[str, Seen]]:
    """By the place of the claim and size."""
    found: dict[int, dict[str, Seen]] = defaultdict(dict)
    for folder in folders():
        race, lines = read(folder)
        for size in race.sizes:
            here = [line for line in lines if line["size"] == size]
            mine = {
                str(i): (c["one"], c["other"])
                for i, c in enumerate(claims)
                if c.get("race") == folder.name
            }
            pairs = {
                i: values for i, pair in mine.items() if (values := _differences(race, here, *pair))
            }
            for i, verdict in judged(pairs, race.margin, len(mine)).items():
                surplus = (
                    _surplus(race, here, *mine[i]) if claims[int(i)].get("fewer_experts") else None
                )
                found[int(i)][size] = Seen(verdict, len(pairs[i]), surplus)
    return found


def _surplus(race: Race, lines: list[dict[str, Any]], one: str, other: str) -> float:
    """Experts a token, means over the training and the seeds."""
    means = [
        fmean(run["routing"]["mean_k"] for run in runs(race, lines, name).values())
        for name in (one, other)
    ]
    return means[0] - means[1]


def _differences(race: Race, lines: list[dict[str, Any]], one: str, other: str) -> list[float]:
    """Paired by seed; none while a seed is still to run."""
    if not ended(race, lines, one, other):
        return []
    return paired(race, runs(race, lines, one), runs(race, lines, other), race.measure)


def _lines(claim: Claim, seen: dict[str, Seen]) -> list[str]:
    told = f"| {claim['paper']} ({claim['where']}) | {claim['claim']} | {claim.get('number', '')} |"
    if "race" not in claim:
        return [f"{told} | | | cannot be run here |\n"]
    if not seen:
        return [f"{told} {claim['race']} | | | not finished yet |\n"]
    return [
        f"{told} {claim['race']}, {size} | {_difference(here.found)} | {here.seeds} | "
        f"{_verdict(claim, here)} |\n"
        for size, here in seen.items()
    ]


def _difference(found: Judged) -> str:
    mean, half = found.difference
    return f"{mean:+.3f}" + (f" ± {half:.3f}" if half is not None else "")


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
