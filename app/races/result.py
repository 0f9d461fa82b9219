"""The result of a race: the numbers behind its tables, pictures and verdicts, computed from the
records of its members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from app.cost.match import CLOSE
from app.races.race import Race
from app.races.speed_up import bound, share_for
from app.races.statistics import Interval, Judged, detectable, interval, judged

# A line of members.jsonl.
Line = Mapping[str, Any]
# The runs of one contestant, by seed.
Runs = Mapping[int, Line]
MATCHED = {"active_flops": "flops", "total_params": "total_params"}
# The optimizer of records that do not name it.
OLD_RULE = "Muon with blocks of 128 columns across gate and up (optimizer.gate_up=null)"
# Numbers of seeds for which the smallest visible difference is given.
SEEDS = (5, 10)


@dataclass(frozen=True)
class Noise:
    """How far runs of the baseline are apart that differ in the seed alone.

    Attributes:
        seeds: Number of these runs.
        mean: Their mean.
        spread: Their standard deviation.
        detectable: The smallest difference that is seen four times out of five, by the number of
            seeds.
    """

    seeds: int
    mean: float
    spread: float
    detectable: dict[int, float]


@dataclass(frozen=True)
class Means:
    """Means over the finished runs of a contestant.

    Attributes:
        bpb: Bits per byte of held-out text.
        nats: Nats per token of held-out text.
        domains: Bits per byte of each domain.
        flops: Training FLOPs per token.
        peak_memory_bytes: Largest memory of the process.
        cost: FLOPs and parameters as multiples of the baseline's; None while it has no run.
        lr: Learning rate of the runs.
        lr_at_grid_edge: Whether it is the smallest or largest that was tried.
        routing: Statistics of the routers; None for a dense model.
        curve: Training tokens and bits per byte.
        tokens_seen: Training tokens of a run.
        seconds_per_token: Measured training time; None if it was not measured.
    """

    bpb: Interval
    nats: Interval
    domains: dict[str, Interval]
    active_params: float
    total_params: float
    flops: float
    peak_memory_bytes: float
    cost: dict[str, float] | None
    lr: float
    lr_at_grid_edge: bool
    routing: dict[str, float] | None
    curve: list[tuple[int, float]]
    tokens_seen: int
    seconds_per_token: float | None

    def of(self, measure: str) -> Interval:
        """Return the measure that a race compares: `bpb` or `nats`."""
        value: Interval = getattr(self, measure)
        return value


@dataclass(frozen=True)
class Difference:
    """Differences to the baseline, paired by seed; negative ones are better.

    Attributes:
        bpb: In bits per byte.
        nats: In nats per token.
        domains: In bits per byte of each domain.
        verdict: In words; `not finished` while a seed is missing.
        p_difference: Probability of such a difference where there is none, corrected by Holm.
        p_equivalence: The same where the difference is as large as the margin.
    """

    bpb: Interval
    nats: Interval
    domains: dict[str, Interval]
    verdict: str = "not finished"
    p_difference: float | None = None
    p_equivalence: float | None = None

    def of(self, measure: str) -> Interval:
        """Return the measure that a race compares: `bpb` or `nats`."""
        value: Interval = getattr(self, measure)
        return value


@dataclass(frozen=True)
class SpeedUp:
    """What the baseline needs for the loss of a contestant.

    Attributes:
        share: Of a whole run of the baseline, or a bound where the loss is outside of what was run.
        flops: Its FLOPs as a multiple of the contestant's.
        seconds: Its time as a multiple of the contestant's.
    """

    share: Interval | str
    flops: Interval | None = None
    seconds: Interval | None = None


@dataclass(frozen=True)
class Row:
    """One contestant at one size.

    Attributes:
        contestant: Its name.
        seeds: Seeds of its finished runs.
        failed: Reasons of its failures.
        means: None without a finished run.
        difference: None for the baseline, and without a seed that both have finished.
        speed_up: None without shorter or longer runs of the baseline.
    """

    contestant: str
    seeds: list[int]
    failed: list[str]
    means: Means | None = None
    difference: Difference | None = None
    speed_up: SpeedUp | None = None


@dataclass(frozen=True)
class SizeResult:
    """All numbers of one size.

    Attributes:
        noise: None with fewer than three runs of the baseline.
        missing: Number of runs that have not ended.
        torch: Versions of torch that the runs used.
        optimizers: Descriptions of the optimizers that the runs used.
        rows: One for each contestant.
    """

    noise: Noise | None
    missing: int
    torch: list[str]
    optimizers: list[str]
    rows: list[Row]


Result = dict[str, SizeResult]


def result_of(
    race: Race, lines: Sequence[Line], seconds: Mapping[str, Mapping[str, float]]
) -> Result:
    """Return the result of a race, by size.

    Args:
        race: Its definition.
        lines: Records of the members that have ended, refused ones among them.
        seconds: Seconds per training token, by size and contestant, measured in turns on a quiet
            machine.
    """
    sizes = [size for size in race.sizes if any(line["size"] == size for line in lines)]
    return {size: _Size(race, lines, size, seconds.get(size, {})).result() for size in sizes}


def runs(race: Race, lines: Sequence[Line], contestant: str, share: float = 1.0) -> Runs:
    """Return the finished runs of a contestant that count, by seed.

    Args:
        race: Its definition.
        lines: Records of one size.
        contestant: Its name.
        share: Length of the runs, as a share of a whole run.
    """
    found = {}
    for line in lines:
        if line["contestant"] != contestant or "failed" in line:
            continue
        # Runs that chose the learning rate do not count.
        if line["share"] == share and line["seed"] != race.tuning_seed:
            found[line["seed"]] = line
    return found


def paired(
    race: Race, own: Runs, other: Runs, measure: str, domain: str | None = None
) -> list[float]:
    """Return the differences between two contestants, one for each seed that both have finished.

    They are in `measure`, or in the bits per byte of a domain.
    """
    pairs = [(own[seed], other[seed]) for seed in race.seeds if seed in own and seed in other]
    if domain is None:
        return [a[measure] - b[measure] for a, b in pairs]
    return [a["domains"][domain] - b["domains"][domain] for a, b in pairs]


def ended(race: Race, lines: Sequence[Line], *contestants: str) -> bool:
    """Return whether all seeds of these contestants have ended, in lines of one size.

    A verdict before that would find more differences than there are.
    """
    seen = {(line["contestant"], line["seed"]) for line in lines if line.get("share") == 1}
    return all((name, seed) in seen for name in contestants for seed in race.seeds)


class _Size:
    """Computes the result of one size."""

    def __init__(
        self, race: Race, lines: Sequence[Line], size: str, seconds: Mapping[str, float]
    ) -> None:
        self.race = race
        self.seconds = seconds
        self.lines = [line for line in lines if line["size"] == size]
        self.base = self.runs(race.baseline)

    def runs(self, contestant: str, share: float = 1.0) -> Runs:
        return runs(self.race, self.lines, contestant, share)

    def result(self) -> SizeResult:
        verdicts = self.verdicts()
        finished = [line for line in self.lines if "failed" not in line]
        return SizeResult(
            noise=self.noise(),
            missing=self.missing(),
            torch=sorted({line["torch"] for line in finished}),
            optimizers=sorted({line.get("optimizer", OLD_RULE) for line in finished}),
            rows=[self.row(name, verdicts.get(name)) for name in self.race.contestants],
        )

    def verdicts(self) -> dict[str, Judged]:
        """Return the verdicts on all contestants whose seeds, and the baseline's, have ended."""
        others = [name for name in self.race.contestants if name != self.race.baseline]
        differences = {}
        for name in others:
            if ended(self.race, self.lines, name, self.race.baseline):
                values = self.paired(name, self.race.measure)
                if values:
                    differences[name] = values
        return judged(differences, self.race.margin, len(others))

    def paired(self, contestant: str, measure: str, domain: str | None = None) -> list[float]:
        """Return the differences to the baseline, by seed."""
        return paired(self.race, self.runs(contestant), self.base, measure, domain)

    def noise(self) -> Noise | None:
        values = [run[self.race.measure] for run in self.base.values()]
        if len(values) < 3:
            return None
        spread = stdev(values)
        # A difference of two runs without a gain from pairing spreads by sqrt(2) as much.
        seen = {seeds: detectable(spread * 2**0.5, seeds) for seeds in SEEDS}
        return Noise(len(values), fmean(values), spread, seen)

    def missing(self) -> int:
        """Return the number of runs that have not ended yet."""
        race = self.race
        expected = 0
        if self.tuned(race.baseline) is not False:
            expected += len(race.noise_seeds) + len(race.lengths) * len(race.seeds)
        for name in race.contestants:
            if self.tuned(name) is not False:
                expected += len(race.rates(name)) + len(race.seeds)
        done = sum(
            "lr" in line and self.tuned(line["contestant"]) is not False for line in self.lines
        )
        return expected - done

    def tuned(self, contestant: str) -> bool | None:
        """Return whether a contestant has a learning rate.

        False: it was refused, or failed with all of them. None: that is not known yet.
        """
        own = [line for line in self.lines if line["contestant"] == contestant]
        # A contestant that was refused has one record, without a learning rate.
        was_refused = any("lr" not in line for line in own)
        tried = [line for line in own if "lr" not in line or line["seed"] == self.race.tuning_seed]
        rates = self.race.rates(contestant)
        if any("failed" not in line for line in tried):
            return True
        if was_refused:
            return False
        if not rates:
            return True
        return False if len(tried) == len(rates) else None

    def row(self, contestant: str, verdict: Judged | None) -> Row:
        """Return the row of a contestant."""
        own = [line for line in self.lines if line["contestant"] == contestant]
        failed = sorted({line["failed"] for line in own if "failed" in line})
        by_seed = self.runs(contestant)
        runs = {seed: run for seed, run in by_seed.items() if seed in self.race.seeds}
        if not runs:
            return Row(contestant, [], failed)
        return Row(
            contestant,
            sorted(runs),
            failed,
            self.means(contestant, list(runs.values())),
            self.difference(contestant, verdict),
            self.speed_up(contestant, runs),
        )

    def means(self, contestant: str, runs: Sequence[Line]) -> Means:
        first = runs[0]
        rates = self.race.rates(contestant)
        return Means(
            bpb=interval([run["bpb"] for run in runs]),
            nats=interval([run["nats"] for run in runs]),
            domains={
                name: interval([run["domains"][name] for run in runs]) for name in first["domains"]
            },
            active_params=_mean(runs, "active_params"),
            total_params=_mean(runs, "total_params"),
            flops=_mean(runs, "flops"),
            peak_memory_bytes=_mean(runs, "peak_memory_bytes"),
            cost=self.cost(runs),
            lr=first["lr"],
            lr_at_grid_edge=bool(rates) and first["lr"] in (rates[0], rates[-1]),
            routing=_routing(runs),
            curve=_curve(runs),
            tokens_seen=first["tokens_seen"],
            seconds_per_token=self.seconds.get(contestant),
        )

    def cost(self, runs: Sequence[Line]) -> dict[str, float] | None:
        """Return what is to be equal, as multiples of the baseline's."""
        base = list(self.base.values())
        if not base:
            return None
        return {name: _mean(runs, key) / _mean(base, key) for name, key in MATCHED.items()}

    def difference(self, contestant: str, verdict: Judged | None) -> Difference | None:
        if contestant == self.race.baseline or not self.paired(contestant, self.race.measure):
            return None
        domains = next(iter(self.runs(contestant).values()))["domains"]
        bpb = interval(self.paired(contestant, "bpb"))
        nats = interval(self.paired(contestant, "nats"))
        by_domain = {name: interval(self.paired(contestant, "bpb", name)) for name in domains}
        if verdict is None:
            return Difference(bpb, nats, by_domain)
        return Difference(
            bpb, nats, by_domain, verdict.verdict, verdict.p_difference, verdict.p_equivalence
        )

    def speed_up(self, contestant: str, runs: Runs) -> SpeedUp | None:
        shares = []
        for seed, run in runs.items():
            ladder = self.ladder(seed)
            if len(ladder) < 2:
                continue
            share = share_for(run["bpb"], ladder)
            if share is None:
                return SpeedUp(bound(run["bpb"], ladder))
            shares.append(share)
        if not shares:
            return None
        mean_share = interval(shares)
        flops = _mean(list(self.base.values()), "flops") / _mean(list(runs.values()), "flops")
        base_time = self.seconds.get(self.race.baseline)
        own_time = self.seconds.get(contestant)
        seconds = mean_share.times(base_time / own_time) if base_time and own_time else None
        return SpeedUp(mean_share, mean_share.times(flops), seconds)

    def ladder(self, seed: int) -> dict[float, float]:
        """Return the baseline's bits per byte on this seed, by the length of its run."""
        ladder = {}
        for share in (1.0, *self.race.lengths):
            run = self.runs(self.race.baseline, share).get(seed)
            if run is not None:
                ladder[share] = run["bpb"]
        return ladder


def unequal(race: Race, row: Row) -> bool:
    """Return whether the cost of a contestant is not the baseline's."""
    if row.means is None or row.means.cost is None:
        return False
    cost = row.means.cost
    names = MATCHED if race.match == "both" else [race.match]
    return any(abs(cost[name] - 1) >= CLOSE for name in names)


def _mean(runs: Sequence[Line], name: str) -> float:
    return fmean(run[name] for run in runs)


def _routing(runs: Sequence[Line]) -> dict[str, float] | None:
    if runs[0]["routing"] is None:
        return None
    return {name: fmean(run["routing"][name] for run in runs) for name in runs[0]["routing"]}


def _curve(runs: Sequence[Line]) -> list[tuple[int, float]]:
    """Return training tokens and bits per byte, means over the runs."""
    tokens_per_step = runs[0]["tokens_seen"] / runs[0]["curve"][-1][0]
    curve = []
    for points in zip(*(run["curve"] for run in runs), strict=True):
        step = points[0][0]
        curve.append((round(step * tokens_per_step), fmean(bpb for _, bpb in points)))
    return curve
