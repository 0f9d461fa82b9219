"""The result of a race: everything that its tables, pictures and verdicts say,
out of the records of its members.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from app.cost.match import CLOSE
from app.races.race import Race
from app.races.speed_up import bound, share_for
from app.races.statistics import Interval, Judged, detectable, interval, judged

Line = Mapping[str, Any]  # of members.jsonl
# of one contestant, by seed
Runs = Mapping[int, Line]
COST = ("active_params", "total_params", "flops", "peak_memory_bytes")
MATCHED = {"active_flops": "flops", "total_params": "total_params"}
# of records without a word
OLD_RULE = "Muon with blocks of 128 columns across gate and up (optimizer.gate_up=null)"
# with which the smallest difference that can be seen is told
SEEDS = (5, 10)


def result_of(
    race: Race, lines: Sequence[Line], seconds: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """By size: how far one run lies from another, how many are missing, and a row for every
    contestant.

    Args:
        race: what was written down.
        lines: records of the members that have ended, refused ones among them.
        seconds: of a training token, by size and contestant, measured in turns on a quiet machine.
    """
    sizes = [size for size in race.sizes if any(line["size"] == size for line in lines)]
    return {size: _Size(race, lines, size, seconds.get(size, {})).result() for size in sizes}


def runs(race: Race, lines: Sequence[Line], contestant: str, share: float = 1.0) -> Runs:
    """Those of a contestant that count, none that chose the learning rate, of lines of one size."""
    mine = (line for line in lines if line["contestant"] == contestant and "failed" not in line)
    return {
        line["seed"]: line
        for line in mine
        if line["share"] == share and line["seed"] != race.tuning_seed
    }


def paired(
    race: Race, own: Runs, other: Runs, measure: str, domain: str | None = None
) -> list[float]:
    """Differences between two contestants on the race's seeds,
    in all or in the bits per byte of a domain.
    """
    pairs = [(own[seed], other[seed]) for seed in race.seeds if seed in own and seed in other]
    if domain is None:
        return [a[measure] - b[measure] for a, b in pairs]
    return [a["domains"][domain] - b["domains"][domain] for a, b in pairs]


def ended(race: Race, lines: Sequence[Line], *contestants: str) -> bool:
    """Whether all seeds of these have ended, in lines of one size:
    who judges earlier finds more than there is.
    """
    seen = {(line["contestant"], line["seed"]) for line in lines if line.get("share") == 1}
    return all((name, seed) in seen for name in contestants for seed in race.seeds)


class _Size:
    """One size of a race."""

    def __init__(
        self, race: Race, lines: Sequence[Line], size: str, seconds: Mapping[str, float]
    ) -> None:
        self.race = race
        self.seconds = seconds
        self.lines = [line for line in lines if line["size"] == size]
        self.base = self.runs(race.baseline)

    def runs(self, contestant: str, share: float = 1.0) -> Runs:
        return runs(self.race, self.lines, contestant, share)

    def result(self) -> dict[str, Any]:
        others = [name for name in self.race.contestants if name != self.race.baseline]
        over = [name for name in others if ended(self.race, self.lines, name, self.race.baseline)]
        tested = {name: values for name in over if (values := self.paired(name, self.race.measure))}
        verdicts = judged(tested, self.race.margin, len(others))
        rows = [self.row(name, verdicts.get(name)) for name in self.race.contestants]
        torch = sorted({line["torch"] for line in self.lines if "failed" not in line})
        optimizers = sorted(
            {line.get("optimizer", OLD_RULE) for line in self.lines if "failed" not in line}
        )
        return {
            "noise": self.noise(),
            "missing": self.missing(),
            "torch": torch,
            "optimizers": optimizers,
            "rows": rows,
        }

    def paired(self, contestant: str, measure: str, domain: str | None = None) -> list[float]:
        """Differences to the baseline."""
        return paired(self.race, self.runs(contestant), self.base, measure, domain)

    def noise(self) -> dict[str, Any] | None:
        """Of runs of the baseline that differ in the seed alone."""
        values = [run[self.race.measure] for run in self.base.values()]
        if len(values) < 3:
            return None
        spread = stdev(values)
        seen = {str(seeds): detectable(spread * 2**0.5, seeds) for seeds in SEEDS}
        return {"seeds": len(values), "mean": fmean(values), "spread": spread, "detectable": seen}

    def missing(self) -> int:
        """Runs that have not ended yet."""
        race = self.race
        own = len(race.noise_seeds) + len(race.lengths) * len(race.seeds)
        left = own if self.tuned(race.baseline) is not False else 0
        for name in race.contestants:
            tuned = self.tuned(name)
            left += 0 if tuned is False else len(race.rates(name)) + len(race.seeds)
        return left - sum(
            "lr" in line and self.tuned(line["contestant"]) is not False for line in self.lines
        )

    def tuned(self, contestant: str) -> bool | None:
        """Whether it has a learning rate; False: it has failed with all of them, or is refused;
        None: not yet known.
        """
        mine = [line for line in self.lines if line["contestant"] == contestant]
        tried = [line for line in mine if "lr" not in line or line["seed"] == self.race.tuning_seed]
        refused = any("lr" not in line for line in tried)
        rates = self.race.rates(contestant)
        if any("failed" not in line for line in tried) or not (rates or refused):
            return True
        return False if len(tried) == len(rates) or refused else None

    def row(self, contestant: str, verdict: Judged | None) -> dict[str, Any]:
        """Everything about a contestant."""
        mine = [line for line in self.lines if line["contestant"] == contestant]
        runs = {seed: run for seed, run in self.runs(contestant).items() if seed in self.race.seeds}
        row: dict[str, Any] = {"contestant": contestant, "seeds": sorted(runs)}
        row["failed"] = sorted({line["failed"] for line in mine if "failed" in line})
        if not runs:
            return row
        each = list(runs.values())
        row |= {name: _told(interval([run[name] for run in each])) for name in ("bpb", "nats")}
        row["domains"] = {
            name: _told(interval([run["domains"][name] for run in each]))
            for name in each[0]["domains"]
        }
        row |= {name: _mean(each, name) for name in COST}
        rates = self.race.rates(contestant)
        row |= {"lr": each[0]["lr"], "edge": each[0]["lr"] in rates[:1] + rates[-1:]}
        row |= {"cost": self.cost(each), "routing": _routing(each), "curve": _curve(each)}
        row |= {
            "tokens_seen": each[0]["tokens_seen"],
            "seconds_per_token": self.seconds.get(contestant),
        }
        if contestant != self.race.baseline and self.paired(contestant, self.race.measure):
            row |= {"difference": self.differences(contestant), "verdict": "not finished"}
        if verdict is not None:
            row |= {"verdict": verdict.verdict, "p_difference": verdict.p_difference}
            row["p_equivalence"] = verdict.p_equivalence
        return row | {"speed_up": self.speed_up(contestant, runs)}

    def cost(self, runs: Sequence[Line]) -> dict[str, float] | None:
        """As a share of the baseline's, what is to be equal."""
        base = list(self.base.values())
        return (
            {name: _mean(runs, key) / _mean(base, key) for name, key in MATCHED.items()}
            if base
            else None
        )

    def differences(self, contestant: str) -> dict[str, Any]:
        """To the baseline, in all and by domain."""
        domains = next(iter(self.runs(contestant).values()))["domains"]
        by_domain = {
            domain: _told(interval(self.paired(contestant, "bpb", domain))) for domain in domains
        }
        total = {
            measure: _told(interval(self.paired(contestant, measure)))
            for measure in ("bpb", "nats")
        }
        return total | {"domains": by_domain}

    def speed_up(self, contestant: str, runs: Runs) -> dict[str, Any] | None:
        """How many times the FLOPs, and the seconds,
        of this contestant the baseline needs for its loss.
        """
        ladders = {s: self.ladder(s) for s in runs if len(self.ladder(s)) > 1}
        if not ladders:
            return None
        needed = {seed: share_for(runs[seed]["bpb"], ladder) for seed, ladder in ladders.items()}
        shares = [share for share in needed.values() if share is not None]
        if len(shares) < len(needed):
            outside = next(seed for seed, share in needed.items() if share is None)
            return {
                "share": bound(runs[outside]["bpb"], ladders[outside]),
                "flops": None,
                "seconds": None,
            }
        flops = _mean(list(self.base.values()), "flops") / _mean(list(runs.values()), "flops")
        both = self.seconds.get(self.race.baseline), self.seconds.get(contestant)
        time = both[0] / both[1] if both[0] and both[1] else None
        share = interval(shares)
        return {
            "share": _told(share),
            "flops": _times(share, flops),
            "seconds": time and _times(share, time),
        }

    def ladder(self, seed: int) -> dict[float, float]:
        """The baseline's bits per byte on this seed, by the share of a run."""
        runs = {
            share: self.runs(self.race.baseline, share).get(seed)
            for share in (1.0, *self.race.lengths)
        }
        return {share: run["bpb"] for share, run in runs.items() if run is not None}


def unequal(race: Race, row: Mapping[str, Any]) -> bool:
    """Whether a row's cost is not the baseline's."""
    names = MATCHED if race.match == "both" else [race.match]
    return bool(row.get("cost")) and any(abs(row["cost"][name] - 1) >= CLOSE for name in names)


def _mean(runs: Sequence[Line], name: str) -> float:
    return fmean(run[name] for run in runs)


def _told(value: Interval) -> dict[str, float | None]:
    return value._asdict()


def _times(value: Interval, factor: float) -> dict[str, float | None]:
    return {
        "mean": value.mean * factor,
        "half": None if value.half is None else value.half * factor,
    }


def _routing(runs: Sequence[Line]) -> dict[str, float] | None:
    """Means over the seeds."""
    if runs[0]["routing"] is None:
        return None
    return {name: fmean(run["routing"][name] for run in runs) for name in runs[0]["routing"]}


def _curve(runs: Sequence[Line]) -> list[tuple[int, float]]:
    """Training tokens and bits per byte, mean over the seeds."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    per_step = runs[0]["tokens_seen"] / runs[0]["curve"][-1][0]
    return [(round(point[0][0] * per_step), fmean(bpb for _, bpb in point)) for point in points]
