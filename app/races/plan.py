"""The members of a race: every contestant at every size, with a learning rate and a seed,
as a run of `train.py`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from app.config.compose import Config, composed
from app.config.errors import MISTAKES, one_line
from app.config.saved import LATER, RUNS
from app.cost.match import CLOSE, COSTS, brought_to, budget
from app.races.race import START, Race
from app.registry import UserError
from app.runs.folder import SUMMARY

# on what is learned
WITHOUT_EFFECT = (
    "run",
    "resume",
    "callbacks",
    "logger",
    "match",
    "trainer.export_weights",
    "trainer.checkpoint_format",
    "trainer.accumulate",
)
# what is known of a member that has ended
Record = Mapping[str, object]


@dataclass(frozen=True)
class Entry:
    """A contestant at a size: its overrides, which solved widths are among, its config, and what it
    costs.

    One that is refused has no config, but the reason.
    """

    contestant: str
    size: str
    overrides: tuple[str, ...]
    config: Config = field(compare=False, repr=False, default_factory=dict)
    cost: dict[str, float] = field(compare=False, default_factory=dict)
    refused: str | None = None


@dataclass(frozen=True)
class Member:
    """One run: an entry with a learning rate and a seed, for a share of the size's steps."""

    entry: Entry
    lr: float
    seed: int
    share: float = 1.0
    # the runs that it starts from
    starts: Mapping[str, "Member"] = field(default_factory=dict, hash=False)

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return round(self.share * self.entry.config["trainer"]["max_steps"])

    @property
    def overrides(self) -> list[str]:
        """What `train.py` is told."""
        own = [f"optimizer.lr={self.lr}", f"seed={self.seed}", f"trainer.max_steps={self.steps}"]
        return [*map(self._with_folders, self.entry.overrides), *own]

    def _with_folders(self, override: str) -> str:
        key, equals, value = override.partition("=")
        return key + equals + START.sub(lambda found: str(self.starts[found[1]].folder), value)

    @property
    def folder(self) -> Path:
        """Of its run."""
        return folder_of(self.key)

    @property
    def is_ready(self) -> bool:
        """Whether its run has ended and can be started from."""
        return (self.folder / SUMMARY).exists()

    @property
    def about(self) -> dict[str, object]:
        """Its place in the race."""
        where = {"contestant": self.entry.contestant, "size": self.entry.size}
        return where | {"lr": self.lr, "seed": self.seed, "share": self.share}

    @cached_property
    def key(self) -> str:
        """The hash of its resolved config, but for what nothing learns from;
        no word that Hydra reads as a number.
        """
        config = {}
        for name, value in self.entry.config.items():
            if _has_effect(name, value):
                config[name] = _of_effect(name, value)
        own = {"overrides": self.entry.overrides} if self.entry.refused else {}
        what: list[object] = [config, own, self.lr, self.seed, self.share]
        if self.starts:
            what.append({name: member.key for name, member in self.starts.items()})
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        return "m" + digest.hexdigest()[:15]


def folder_of(key: str) -> Path:
    """Of the run of a member."""
    return RUNS / f"member-{key}"


def _has_effect(name: str, value: Any) -> bool:
    """Whether something is learned from a part of the config: not where nothing of it is set."""
    if name in WITHOUT_EFFECT:
        return False
    is_group = isinstance(value, Mapping) and len(value) > 0
    return not (is_group and all(inner is None for inner in value.values()))


def _of_effect(name: str, value: Any) -> Any:
    """A part of the config without those of its values that change nothing,
    or are what runs before them had.
    """
    if not isinstance(value, Mapping):
        return value
    later = LATER.get((name, value.get("name")), {})
    effective = {}
    for key, inner in value.items():
        has_no_effect = f"{name}.{key}" in WITHOUT_EFFECT
        is_as_before = key in later and later[key] == inner
        if not has_no_effect and not is_as_before:
            effective[key] = inner
    return effective


class Plan:
    """All members of the chosen sizes of a race."""

    def __init__(self, race: Race, sizes: Sequence[str]) -> None:
        self.race = race
        self.sizes = sizes
        self.entries: list[Entry] = []
        self._places: dict[tuple[str, str], Entry] = {}
        for size in sizes:
            for entry in _entries(race, size):
                self.entries.append(entry)
                self._places[entry.contestant, size] = entry
            for name in race.before:
                self._places[name, size] = _before(race, name, size)

    def missing(self, records: Mapping[str, Record]) -> list[Member]:
        """Those that can be run now, one of those that are equal;
        the rest waits for the learning rates.
        """
        missing = {}
        for member in self.known(records):
            if member.key not in records and not member.entry.refused:
                missing[member.key] = member
        return list(missing.values())

    def first(self, members: Iterable[Member], records: Mapping[str, Record]) -> list[Member]:
        """Those that can run now of the runs that members start from, and that must end before.

        Raises:
            UserError: one has failed.
        """
        needed = {}
        for member in members:
            for start in _all_starts(member):
                if not start.is_ready:
                    needed[start.key] = start
        for key, start in needed.items():
            failure = records.get(key, {}).get("failed")
            if failure is not None:
                raise UserError(
                    f"{start.entry.contestant}, which others start from, has failed: {failure}; "
                    "retry=true runs it again"
                )
        # The others wait for these.
        return [
            start
            for start in needed.values()
            if all(other.is_ready for other in start.starts.values())
        ]

    def member(self, entry: Entry, lr: float, seed: int, share: float = 1.0) -> Member:
        """With the runs of the same seed that it starts from."""
        starts = {
            name: self._start(name, entry.size, seed) for name in self.race.starts(entry.contestant)
        }
        return Member(entry, lr, seed, share, starts)

    def _start(self, name: str, size: str, seed: int) -> Member:
        entry = self._places[name, size]
        return self.member(entry, entry.config["optimizer"]["lr"], seed)

    def known(self, records: Mapping[str, Record]) -> list[Member]:
        """Those whose learning rate is chosen, or that choose it;
        a seed of all before the next seed.
        """
        rates = {}
        for entry in self.entries:
            rate = self.rate(entry, records)
            if rate is not None:
                rates[entry] = rate
        members = list(self.tuning())
        for seed in self.race.seeds:
            members += [self.member(entry, rate, seed) for entry, rate in rates.items()]
        # More runs of the baseline tell the noise, and how long it takes to the loss of another.
        for entry, rate in rates.items():
            if entry.contestant != self.race.baseline:
                continue
            members += [self.member(entry, rate, seed) for seed in self.race.noise_seeds]
            for share in self.race.lengths:
                members += [self.member(entry, rate, seed, share) for seed in self.race.seeds]
        return members

    def tuning(self) -> Iterator[Member]:
        """Every learning rate of every entry."""
        for entry in self.entries:
            for rate in self.race.rates(entry.contestant):
                yield self.member(entry, rate, self.race.tuning_seed)

    def rate(self, entry: Entry, records: Mapping[str, Record]) -> float | None:
        """The best learning rate of an entry;
        None if it is not known yet, or no rate has led to a loss.
        """
        if entry.refused:
            return None
        if not (rates := self.race.rates(entry.contestant)):
            return float(entry.config["optimizer"]["lr"])
        tried = [
            (rate, records.get(self.member(entry, rate, self.race.tuning_seed).key))
            for rate in rates
        ]
        if any(record is None for _, record in tried):
            return None
        good = [
            (record[self.race.measure], rate)
            for rate, record in tried
            if record and "failed" not in record
        ]
        return min(good)[1] if good else None


def _all_starts(member: Member) -> Iterator[Member]:
    for start in member.starts.values():
        yield from _all_starts(start)
        yield start


def _before(race: Race, name: str, size: str) -> Entry:
    overrides = race.overrides(name, size)
    try:
        return Entry(name, size, tuple(overrides), composed(overrides))
    except MISTAKES as error:
        raise UserError(f"race.before.{name}: {one_line(error)}") from error


def _entries(race: Race, size: str) -> Iterator[Entry]:
    """The contestants at a size, each brought to the baseline's cost unless it keeps its own."""
    reference = composed(race.overrides(race.baseline, size))
    goal = budget(reference)
    for name in race.contestants:
        overrides = race.overrides(name, size)
        try:
            config = composed(overrides)
            if name != race.baseline and name not in race.unmatched:
                solved = brought_to(config, reference, race.match, f"race.contestants.{name}")
                overrides += [
                    f"experts.{k}={v}"
                    for k, v in solved["experts"].items()
                    if v != config["experts"][k]
                ]
                config = solved
            costs = {cost: of(budget(config)) / of(goal) for cost, of in COSTS.items()}
            yield Entry(name, size, tuple(overrides), config, costs)
        except MISTAKES as error:
            yield Entry(name, size, tuple(overrides), refused=one_line(error))


def unequal(entry: Entry, match: str) -> bool:
    """Whether it costs another share of what all are brought to."""
    return any(
        abs(entry.cost[name] - 1) >= CLOSE for name in (COSTS if match == "both" else [match])
    )
