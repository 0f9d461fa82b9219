"""A race whose contestants start from other runs:
who comes first, under which key, and what is refused.
"""

from pathlib import Path
from typing import Any

import pytest

from app.races.plan import Plan
from app.races.race import read_race
from app.registry import UserError
from tests.support.studies import VALUES

STAGES: dict[str, Any] = {
    "before": {
        "base": ["experts=dense", "balance=none"],
        "french": ["init=skills", "init.base=@base", "optimizer.lr=0.5"],
    },
    "contestants": VALUES["contestants"]
    | {"mixed": ["init=skills", "init.base=@base", "init.files={a: @french}"]},
    "unmatched": ["mixed"],
}


def test_a_member_starts_from_runs_of_its_seed_which_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, staged = (Plan(read_race(values), ["xs"]) for values in (VALUES, VALUES | STAGES))
    assert {m.key for m in plan.tuning()} < {m.key for m in staged.tuning()}, (
        "who starts from nothing is the same run"
    )
    mixed = [member for member in staged.tuning() if member.entry.contestant == "mixed"]
    base = mixed[0].starts["base"]
    french = mixed[0].starts["french"]
    assert (base.seed, french.seed, french.lr) == (9, 9, 0.5) and french.starts == {"base": base}
    for member in mixed:
        assert f"init.base={base.folder}" in member.overrides
        assert f"init.files={{a: {french.folder}}}" in member.overrides
    for begun, (ready, first) in enumerate(((None, [base]), (base, [french]), (french, []))):
        if ready is not None:
            ready.folder.mkdir(parents=True)
            (ready.folder / "summary.json").touch()
        assert [m.key for m in staged.first(mixed, {})] == [m.key for m in first], begun
    other = staged.member(mixed[0].entry, mixed[0].lr, 1)
    assert other.starts["base"].key != base.key and len(staged.first([other], {})) == 1


@pytest.mark.nightly
def test_another_run_to_start_from_makes_another_member() -> None:
    longer = {
        "base": [*STAGES["before"]["base"], "trainer.max_steps=9"],
        "french": STAGES["before"]["french"],
    }
    keys = [
        {m.key for m in Plan(read_race(VALUES | STAGES | {"before": before}), ["xs"]).tuning()}
        for before in (STAGES["before"], longer)
    ]
    assert len(keys[0] - keys[1]) == 3, "mixed at three learning rates"


def test_who_has_a_learning_rate_chooses_none_and_others_can_start_from_it() -> None:
    contestants = VALUES["contestants"] | {
        "own": ["optimizer.lr=0.3"],
        "next": ["init=skills", "init.base=@own"],
    }
    found = Plan(read_race(VALUES | {"contestants": contestants, "unmatched": ["next"]}), ["xs"])
    own = next(entry for entry in found.entries if entry.contestant == "own")
    assert found.rate(own, {}) == 0.3 and "own" not in {m.entry.contestant for m in found.tuning()}
    runs = [member for member in found.missing({}) if member.entry.contestant == "own"]
    assert [(member.seed, member.lr) for member in runs] == [(0, 0.3), (1, 0.3)]
    after = next(member for member in found.tuning() if member.entry.contestant == "next")
    assert [m.key for m in found.first([after], {})] == [found.member(own, 0.3, 9).key]


def test_a_start_that_failed_ends_the_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    staged = Plan(read_race(VALUES | STAGES), ["xs"])
    base = next(m for m in staged.tuning() if m.entry.contestant == "mixed").starts["base"]
    with pytest.raises(
        UserError, match="base, which others start from, has failed: no memory; retry=true"
    ):
        staged.first(staged.tuning(), {base.key: {"failed": "no memory"}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"before": {"top2": []}},
            "race.before=['top2']: must have other names than the contestants",
        ),
        (
            {"before": {"a": ["init=skills", "init.base=@b"]}},
            "race.a=@b: must be a run with its own learning rate: a",
        ),
        (
            {"contestants": {"top2": [], "x": ["a=@top2"]}},
            "race.x=@top2: must be a run with its own learning rate: ",
        ),
        (
            {"before": {"a": ["init=skills", "init.base=@b"], "b": ["x=@a"]}},
            "race.a=@a: must not start from itself",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_a_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_race(VALUES | change)
    assert said in str(caught.value) and "\n" not in str(caught.value)
