"""What a race is: `conf/race/NAME.yaml`, written before it runs."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.config.overrides import combined, last, value_of
from app.config.own_overrides import require_own_overrides
from app.registry import UserError, check, require, unknown

# of `hydra`: what the overrides themselves change
COMPOSED = ("runtime", "overrides")
# Groups of runs in a race file.
GROUPS = ("before", "contestants")
# in the value of an override
START = re.compile(r"@(\w+)")


@dataclass(frozen=True, kw_only=True)
class Race:
    """Contestants at equal cost, on the same rows of the same text for the same seed.

    Args:
        claim: what is tested.
        common: overrides of all contestants, on top of experiment=race/SIZE.
        before: runs that others start from, by name: their overrides on top of experiment=race/SIZE
            alone.
        contestants: the overrides of each; a group that it chooses itself is not the common one,
            and a learning rate of its own is not chosen from `lr`.
        baseline: the contestant that the others are compared with.
        match: the cost of the baseline that the others are brought to, within 0.5 %.
        unmatched: contestants that keep their own cost, which the table then says.
        sizes: of the experiments race/SIZE.
        seeds: of the comparison, the same for all.
        noise_seeds: more of them for the baseline alone, which tell how far one run lies from
            another.
        tuning_seed: on which everybody's learning rate is chosen; not among the others.
        lr: the learning rates to choose from, rising; at least three.
        lengths: of further runs of the baseline, in shares of a run: how long it takes to
            somebody's loss.
        measure: what decides: bits per byte of held-out text (mean over the domains), or nats per
            token.
        margin: a difference that does not matter, in units of the measure.

    Raises:
        ValueError: a value is out of its range.
    """

    claim: str
    before: dict[str, list[str]]
    common: list[str]
    contestants: dict[str, list[str]]
    baseline: str
    match: Literal["active_flops", "total_params", "both"]
    unmatched: list[str]
    sizes: list[str]
    seeds: list[int]
    noise_seeds: list[int]
    tuning_seed: int
    lr: list[float]
    lengths: list[float]
    measure: Literal["bpb", "nats"]
    margin: float

    def __post_init__(self) -> None:
        names = ", ".join(self.contestants)
        require(
            "baseline", self.baseline, self.baseline in self.contestants, f"must be one of {names}"
        )
        twice = sorted({*self.before} & {*self.contestants})
        require("before", twice, not twice, "must have other names than the contestants")
        for name in (*self.before, *self.contestants):
            self._require_starts(name)
        strangers = sorted({*self.unmatched} - {*self.contestants})
        require("unmatched", strangers, not strangers, f"must be among {names}")
        plain = all(re.fullmatch(r"\w+", size) for size in self.sizes)
        require("sizes", self.sizes, plain, "must be names of experiments race/SIZE")
        for name in ("sizes", "seeds"):
            values = getattr(self, name)
            require(
                name,
                values,
                len({*values}) == len(values) > 0,
                "must name each once, and at least one",
            )
        fresh = self.tuning_seed not in {*self.seeds, *self.noise_seeds}
        require(
            "tuning_seed", self.tuning_seed, fresh, "must be none of the seeds of the comparison"
        )
        rate = last(self.common, "optimizer.lr")
        require(
            "common",
            f"optimizer.lr={rate}",
            rate is None,
            "would be overridden by the rates of `lr`: put it there",
        )
        rising = len(self.lr) >= 3 and sorted({*self.lr}) == self.lr and self.lr[0] > 0
        require("lr", self.lr, rising, "must be at least three, rising")
        require(
            "lengths",
            self.lengths,
            all(0 < share != 1 for share in self.lengths),
            "must be above 0, and not 1",
        )
        require("margin", self.margin, self.margin > 0, "must be above 0")

    def overrides(self, name: str, size: str) -> list[str]:
        """All of a contestant's before its widths are solved, or of a run that comes before."""
        return combined([f"experiment=race/{size}"], self._words(name))

    def starts(self, name: str) -> list[str]:
        """The runs that one starts from: its overrides name the folder
        of the run with its seed as @NAME.
        """
        return [start for word in self._words(name) for start in START.findall(value_of(word))]

    def rates(self, name: str) -> list[float]:
        """The learning rates that one chooses from; none where its own is written down."""
        own = name in self.before or last(self._own(name), "optimizer.lr") is not None
        return [] if own else self.lr

    def _words(self, name: str) -> list[str]:
        return combined([] if name in self.before else self.common, self._own(name))

    def _own(self, name: str) -> list[str]:
        return (self.before | self.contestants)[name]

    def _require_starts(self, name: str, above: tuple[str, ...] = ()) -> None:
        """Checks that the runs that one starts from are there, are not itself,
        and have a learning rate.
        """
        require(name, "@" + name, name not in above, "must not start from itself")
        known = [other for other in (*self.before, *self.contestants) if not self.rates(other)]
        for start in self.starts(name):
            require(
                name,
                f"@{start}",
                start in known,
                f"must be a run with its own learning rate: {', '.join(known)}",
            )
            self._require_starts(start, (*above, name))


def read_race(values: dict[str, Any]) -> Race:
    """Return the race of the group `race` of the composed config.

    Raises:
        UserError: A value is missing, unknown or out of its range.
    """
    for group in GROUPS:
        for name, overrides in (values.get(group) or {}).items():
            if not _is_list_of_words(overrides):
                raise UserError(
                    f"race.{group}.{name}={overrides}: must be a list of overrides; [] for none"
                )
    try:
        race = Race(**check(Race, {"before": {}} | values, "race"))
    except ValueError as error:
        raise UserError(f"race.{error}") from error
    require_own_overrides("race.common", race.common)
    for name, overrides in race.contestants.items():
        require_own_overrides(f"race.contestants.{name}", overrides)
    for name, overrides in race.before.items():
        require_own_overrides(f"race.before.{name}", overrides)
    return race


def with_inherited_overrides(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a race file without its templates, and with plain lists of overrides.

    A run that is written as `{like: OTHER, with: [overrides]}` has the overrides of a template or
    of another run, and its own on top of them.

    Raises:
        UserError: OTHER does not exist, or inherits from itself.
    """
    plain = {key: value for key, value in values.items() if key != "templates"}
    known: dict[str, object] = {}
    for group in ("templates", *GROUPS):
        known.update(values.get(group) or {})
    for group in GROUPS:
        if isinstance(values.get(group), dict):
            plain[group] = {
                name: _inherited(f"race.{group}.{name}", entry, known)
                for name, entry in values[group].items()
            }
    return plain


def _inherited(
    key: str, entry: object, known: Mapping[str, object], above: tuple[str, ...] = ()
) -> Any:
    """Return the overrides of a run or a template; what is wrong with them is found later."""
    if not isinstance(entry, dict) or entry.keys() != {"like", "with"}:
        return entry
    other = str(entry["like"])
    if other not in known:
        raise UserError(unknown(f"{key}.like={other}", other, known))
    if other in above:
        raise UserError(f"{key}.like={other}: inherits from itself; name another one")
    inherited = _inherited(key, known[other], known, (*above, other))
    if not _is_list_of_words(inherited) or not _is_list_of_words(entry["with"]):
        raise UserError(f"{key}: must inherit and add lists of overrides; [] for none")
    return combined(inherited, entry["with"])


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def require_own_settings(
    name: str, settings: Mapping[str, Any], without: Mapping[str, Any]
) -> None:
    """Check that the file of a study sets nothing of Hydra, whose launchers and callbacks can run
    code.

    Args:
        name: The study.
        settings: The config group `hydra` of the composed config.
        without: The same, composed without the study's file.

    Raises:
        UserError: It does.
    """
    given, plain = (
        dict(each) | {"job": _without_name(each["job"])} for each in (settings, without)
    )
    for key in sorted(given.keys() | plain.keys()):
        if key not in COMPOSED and given.get(key) != plain.get(key):
            raise UserError(
                f"race={name}: its file sets hydra.{key}; remove it there, and give it as an "
                "override"
            )


def _without_name(job: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job without the overrides that Hydra writes into them."""
    return {key: value for key, value in job.items() if key != "override_dirname"}


def fingerprint(values: dict[str, Any]) -> str:
    """Of all that a race has written down: a changed race has another one."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def chosen_sizes(race: Race, sizes: list[str] | None) -> list[str]:
    """Those of the race's sizes that are chosen; all if none is.

    Raises:
        UserError: one is not of the race.
    """
    if sizes is not None and not isinstance(sizes, list):
        raise UserError(f"sizes={sizes}: must be a list, such as sizes=[{race.sizes[0]}]")
    for size in sizes or ():
        if size not in race.sizes:
            raise UserError(unknown(f"sizes={sizes}", size, race.sizes))
    return race.sizes if sizes is None else [size for size in race.sizes if size in sizes]
