"""The members of a race: who runs, at which cost, with which learning rate, under which key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.races.plan import Member, Plan
from app.races.race import chosen_sizes, fingerprint, read_race
from app.races.records import read_records, write_records
from app.races.work import DESK, hand_out
from app.registry import UserError
from tests.support.studies import VALUES, WHOLE


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(read_race(VALUES), ["xs"])


def records(plan: Plan, best: float = 0.02) -> dict[str, dict[str, Any]]:
    return {member.key: WHOLE | {"bpb": 2 + abs(member.lr - best)} for member in plan.tuning()}


def test_everybody_has_the_cost_of_the_baseline(plan: Plan) -> None:
    assert {
        entry.contestant: abs(entry.cost["active_flops"] - 1) < 0.005 for entry in plan.entries
    } == {
        "top2": True,
        "fine": True,
        "big": True,
    }
    fine = plan.entries[1]
    assert fine.config["experts"]["hidden_dim"] != 64, (
        "its router is wider, so its experts are not as wide"
    )
    assert f"experts.hidden_dim={fine.config['experts']['hidden_dim']}" in fine.overrides


def test_at_first_all_learning_rates_run_on_the_tuning_seed(plan: Plan) -> None:
    first = plan.missing({})
    assert {(m.entry.contestant, m.lr) for m in first} == {
        (c, lr) for c in VALUES["contestants"] for lr in VALUES["lr"]
    }
    assert {m.seed for m in first} == {9}


def test_then_the_best_of_them_runs_on_the_seeds_and_the_baseline_oftener(plan: Plan) -> None:
    then = [
        (m.entry.contestant, m.seed, m.share) for m in plan.missing(records(plan)) if m.lr == 0.02
    ]
    whole = [(c, s, 1.0) for s in (0, 1) for c in VALUES["contestants"]]
    assert then == [*whole, ("top2", 2, 1.0), ("top2", 3, 1.0), ("top2", 0, 0.5), ("top2", 1, 0.5)]


def test_one_without_a_loss_at_any_rate_runs_no_further(plan: Plan) -> None:
    known = records(plan)
    for member in plan.tuning():
        if member.entry.contestant == "big":
            known[member.key] = {"failed": "not finite"}
    assert {m.entry.contestant for m in plan.missing(known)} == {"top2", "fine"}


def test_a_failed_rate_is_not_the_best(plan: Plan) -> None:
    known = records(plan)
    known[next(m.key for m in plan.tuning() if m.lr == 0.02)] = {"failed": "not finite"}
    assert plan.rate(plan.entries[0], known) in (0.01, 0.04)


def test_a_key_is_that_of_what_is_learned_and_nothing_else(plan: Plan) -> None:
    keys = [member.key for member in plan.known(records(plan))]
    assert len({*keys}) == len(keys)
    common = [*VALUES["common"], "callbacks=off", "logger=none", "run=me"]
    same = Plan(read_race(VALUES | {"common": common, "claim": "another"}), ["xs"])
    other = Plan(read_race(VALUES | {"common": [*VALUES["common"], "model.num_layers=3"]}), ["xs"])
    assert [m.key for m in same.tuning()] == [m.key for m in plan.tuning()]
    assert not {m.key for m in other.tuning()} & {m.key for m in plan.tuning()}


def test_a_part_of_the_config_that_is_new_and_unset_leaves_the_keys_of_what_has_ended(
    plan: Plan,
) -> None:
    member = Member(plan.entries[0], 0.01, 1)

    def key(**more: Any) -> str:
        return replace(member, entry=replace(member.entry, config=member.entry.config | more)).key

    assert key(news={"base": None, "files": None}) == key() == member.key
    assert len({key(), key(news={"base": "runs/a", "files": None}), key(news={})}) == 3
    trainer = member.entry.config["trainer"]
    kept = {name: value for name, value in trainer.items() if name != "export_weights"}
    assert key(trainer=kept) == key(trainer=trainer | {"export_weights": "last"}) == key()
    model = member.entry.config["model"]
    older = {name: value for name, value in model.items() if name != "qkv_bias"}
    assert (
        key(model=older)
        == key(model=older | {"qkv_bias": False})
        == key()
        != key(model=older | {"qkv_bias": True})
    )


def test_equal_contestants_run_once_and_are_told_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    twice = Plan(
        read_race(VALUES | {"contestants": {"top2": [], "same": ["router=deepseek_v1"]}}), ["xs"]
    )
    assert len(twice.missing({})) == 3
    known = {
        key: {"contestant": "of another race", "nats": 1.0} | record
        for key, record in records(twice).items()
    }
    (tmp_path / "results" / "mine").mkdir(parents=True)
    lines = write_records("mine", twice, known)
    assert [line["contestant"] for line in lines] == ["top2"] * 3 + ["same"] * 3


def test_what_ended_in_another_race_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "mine").mkdir(parents=True)
    write_records("mine", plan, records(plan))
    found = read_records()
    assert not {member.key for member in plan.tuning()} & {
        member.key for member in plan.missing(found)
    }
    assert plan.rate(plan.entries[0], found) == 0.02


def test_a_race_of_one_size_keeps_what_is_known_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "mine").mkdir(parents=True)
    race = read_race(VALUES | {"contestants": {"top2": []}, "sizes": ["xs", "s"]})
    small = Plan(race, ["xs"])
    larger = Plan(race, ["s"])
    write_records("mine", larger, records(larger))
    lines = write_records("mine", small, records(small))
    assert [line["size"] for line in lines] == ["xs"] * 3 + ["s"] * 3
    assert read_records().keys() == {
        member.key for plan in (small, larger) for member in plan.tuning()
    }


def test_what_failed_is_run_again_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *_ = plan.tuning()
    hand_out(first)
    (DESK / f"{first.key}.json").write_text('{"failed": "no memory"}')
    assert first not in plan.missing(read_records()) and first in plan.missing(
        read_records(retry=True)
    )
    hand_out(first)
    assert first in plan.missing(read_records()), "its failure is forgotten when it starts"


def test_a_refused_contestant_says_why_and_the_others_run() -> None:
    wrong = VALUES["contestants"] | {"typo": ["router=topkk"], "wide": ["experts.top_k=9"]}
    found = Plan(read_race(VALUES | {"contestants": wrong}), ["xs"])
    refused = {entry.contestant: entry.refused for entry in found.entries if entry.refused}
    assert refused.keys() == {"typo", "wide"} and "did you mean 'topk'" in str(refused["typo"])
    assert {m.entry.contestant for m in found.missing({})} == {"top2", "fine", "big"}


def test_a_run_of_half_the_length_has_half_the_steps(plan: Plan) -> None:
    assert "trainer.max_steps=4" in Member(plan.entries[0], 0.01, 0, 0.5).overrides


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baseline": "nobody"}, "race.baseline=nobody: must be one of top2, fine, big"),
        ({"tuning_seed": 1}, "race.tuning_seed=1: must be none of the seeds"),
        ({"lr": [0.1, 0.2]}, "must be at least three, rising"),
        ({"lr": [0.1, 0.3, 0.2]}, "must be at least three, rising"),
        (
            {"common": [*VALUES["common"], "optimizer.lr=0.5"]},
            "race.common=optimizer.lr=0.5: would be overridden by the rates of `lr`",
        ),
        ({"margin": 0.0}, "race.margin=0.0: must be above 0"),
        ({"seeds": [0, 0]}, "must name each once"),
        ({"unmatched": ["nobody"]}, "race.unmatched=['nobody']: must be among"),
        ({"lengths": [1.0]}, "must be above 0, and not 1"),
        ({"match": "time"}, "race.match=time: must be one of"),
        (
            {"contestants": {"top2": [], "x": ["init=skills", "init.base=@top2"]}},
            "race.x=@top2: must be a run with its own learning",
        ),
        ({"sedes": [0]}, "did you mean 'seeds'"),
    ],
)
def test_a_race_that_is_not_well_described_is_refused_in_a_line(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_race(VALUES | change)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_are_those_of_the_race() -> None:
    race = read_race(VALUES | {"sizes": ["xs", "s"]})
    assert chosen_sizes(race, ["s"]) == ["s"] and chosen_sizes(race, None) == ["xs", "s"]
    with pytest.raises(UserError, match="unknown"):
        chosen_sizes(race, ["m"])


def test_any_change_makes_another_race() -> None:
    assert (
        len(
            {
                fingerprint(VALUES),
                fingerprint(VALUES | {"margin": 0.02}),
                fingerprint(VALUES | {"claim": ""}),
            }
        )
        == 3
    )
