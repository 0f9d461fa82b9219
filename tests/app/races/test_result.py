"""The result of a race, out of records that are made up so that the truth is known."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from matplotlib.figure import Figure

from app.races import pictures
from app.races.page import write_result
from app.races.race import read_race
from app.races.result import Result, Row, SpeedUp, result_of, unequal
from app.races.speed_up import share_for
from app.races.tables import cells, failures, markdown
from tests.support.studies import VALUES

NAMES: dict[str, list[str]] = {"top2": [], "good": [], "same": [], "broken": [], "typo": []}
RACE = read_race(VALUES | {"contestants": NAMES, "seeds": [0, 1, 2]})
ROUTING = {
    "maxvio": 1.0,
    "dead": 0.0,
    "drop_rate": 0.0,
    "mean_k": 2.0,
    "token_entropy": 1.0,
    "domain_information": 0.1,
}
# what a seed adds, to everybody
SEEDS = {0: 0.0, 1: 0.02, 2: -0.01}
LOSS = {"top2": 2.5, "good": 2.4, "same": 2.5}


def line(
    name: str, seed: int, loss: float, share: float = 1.0, lr: float = 0.02, flops: float = 6.0
) -> dict[str, Any]:
    return {
        "contestant": name,
        "size": "xs",
        "lr": lr,
        "seed": seed,
        "share": share,
        "bpb": loss,
        "nats": 2 * loss,
        "domains": {"a": loss - 0.5, "b": loss + 0.5},
        "active_params": 10,
        "total_params": 40,
        "tokens_seen": 100,
        "flops": flops,
        "peak_memory_bytes": 1e6,
        "curve": [[5, 3.0], [10, loss]],
        "routing": ROUTING,
        "torch": "2.13",
    }


def lines() -> list[dict[str, Any]]:
    tuning = [line(name, 9, LOSS[name] + abs(lr - 0.02), lr=lr) for name in LOSS for lr in RACE.lr]
    tuning += [{**line("broken", 9, 0, lr=lr), "failed": "step 3: not finite"} for lr in RACE.lr]
    flops = {"good": 12.0}
    finals = [
        line(n, s, LOSS[n] + own, flops=flops.get(n, 6.0)) for n in LOSS for s, own in SEEDS.items()
    ]
    noise = [line("top2", 3, 2.53), line("top2", 2 + 2, 2.48)]
    ladder = [line("top2", s, 2.6 + own, share=0.5) for s, own in SEEDS.items()]
    return [
        {"contestant": "typo", "size": "xs", "failed": "router=topkk: unknown"},
        *tuning,
        *finals,
        *noise,
        *ladder,
    ]


@pytest.fixture(scope="module")
def result() -> Result:
    return result_of(RACE, lines(), {"xs": {"top2": 1e-3, "good": 4e-3}})


@pytest.fixture(scope="module")
def rows(result: Result) -> dict[str, Row]:
    return {row.contestant: row for row in result["xs"].rows}


def test_a_difference_is_paired_by_seed(rows: dict[str, Row]) -> None:
    good = rows["good"]
    assert good.difference.bpb.mean == pytest.approx(-0.1)
    assert good.difference.bpb.half == pytest.approx(0, abs=1e-9), (
        "what a seed adds to all is no noise"
    )
    assert good.difference.nats.mean == pytest.approx(-0.2)
    by_domain = good.difference.domains
    assert {name: round(value.mean, 6) for name, value in by_domain.items()} == {
        "a": -0.1,
        "b": -0.1,
    }
    assert good.means.bpb.half > 0.03, "but it is in the interval of a contestant alone"


def test_the_verdicts(rows: dict[str, Row]) -> None:
    assert rows["good"].difference.verdict == "better"
    assert rows["same"].difference.verdict == "equivalent"
    assert rows["top2"].difference is None


@pytest.mark.parametrize("late", ["good", "top2"])
def test_no_verdict_before_all_seeds_have_ended(late: str) -> None:
    early = [
        each
        for each in lines()
        if (each["contestant"], each.get("seed"), each.get("share")) != (late, 2, 1.0)
    ]
    rows = {row.contestant: row for row in result_of(RACE, early, {})["xs"].rows}
    assert rows["good"].difference.bpb.mean == pytest.approx(-0.1)
    assert rows["good"].difference.verdict == "not finished"
    assert rows["same"].difference.verdict == ("equivalent" if late == "good" else "not finished")
    assert cells(RACE, rows["good"])[4] == "not finished"
    failed = [
        *early,
        {"contestant": late, "size": "xs", "lr": 0.02, "seed": 2, "share": 1.0, "failed": "killed"},
    ]
    assert {row.contestant: row for row in result_of(RACE, failed, {})["xs"].rows}[
        "good"
    ].difference.verdict == "better"


def test_the_noise_is_that_of_all_seeds_of_the_baseline(result: Result) -> None:
    noise = result["xs"].noise
    values = [2.5, 2.52, 2.49, 2.53, 2.48]
    mean = sum(values) / 5
    assert noise.seeds == 5
    assert noise.spread == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 4))
    assert noise.detectable[5] > noise.detectable[10] > noise.spread


def test_speed_up_is_what_the_baseline_needs_for_the_same_loss(rows: dict[str, Row]) -> None:
    assert rows["same"].speed_up.flops.mean == pytest.approx(1)
    assert rows["good"].speed_up == SpeedUp("> 1.0")
    longer = [line("top2", s, 2.3 + own, share=2.0) for s, own in SEEDS.items()]
    race = read_race(
        VALUES
        | {"contestants": {"top2": [], "good": []}, "seeds": [0, 1, 2], "lengths": [0.5, 2.0]}
    )
    mine = [run for run in lines() if run["contestant"] in race.contestants]
    found = (
        result_of(race, [*mine, *longer], {"xs": {"top2": 1e-3, "good": 4e-3}})["xs"]
        .rows[1]
        .speed_up
    )
    assert found.share.mean == pytest.approx(math.sqrt(2)), (
        "half-way between 1 and 2, on a logarithmic scale"
    )
    assert found.flops.mean == pytest.approx(math.sqrt(2) / 2), "it takes twice the FLOPs a token"
    assert found.seconds.mean == pytest.approx(math.sqrt(2) / 4)


def test_a_share_outside_of_what_was_run_is_not_guessed() -> None:
    assert (
        share_for(2.0, {0.5: 3.0, 1.0: 2.5}) is None
        and share_for(3.5, {0.5: 3.0, 1.0: 2.5}) is None
    )
    assert share_for(2.5, {0.5: 3.0, 1.0: 2.5}) == pytest.approx(1)


def test_who_has_failed_or_is_refused_is_a_row_with_its_reason(rows: dict[str, Row]) -> None:
    assert rows["broken"].failed == ["step 3: not finite"] and rows["broken"].seeds == []
    assert "failed" in cells(RACE, rows["typo"])
    assert "typo: router=topkk: unknown" in failures(list(rows.values()))


def test_it_is_complete_when_nobody_who_can_run_is_missing(result: Result) -> None:
    assert result["xs"].missing == 0
    some = [x for x in lines() if (x["contestant"], x.get("seed")) != ("good", 1)]
    found = result_of(RACE, some, {})
    assert found["xs"].missing == 1 and "Incomplete: 1 runs" in markdown(RACE, "r", found)
    untuned = [x for x in lines() if x["contestant"] != "good"]
    assert result_of(RACE, untuned, {})["xs"].missing == 3 + 3


def test_runs_of_several_versions_of_torch_are_told() -> None:
    elsewhere = [{**each, "torch": "2.11"} if each.get("seed") == 1 else each for each in lines()]
    assert "Runs by torch 2.11 and 2.13, " in markdown(RACE, "r", result_of(RACE, elsewhere, {}))


def test_a_result_says_by_which_rule_the_optimizer_treated_its_weights() -> None:
    old = "Muon with blocks of 128 columns across gate and up"
    assert old in markdown(RACE, "r", result_of(RACE, lines(), {}))
    new = [{**each, "optimizer": "muon, gate_up=apart, precision 32-true"} for each in lines()]
    page = markdown(RACE, "r", result_of(RACE, new, {}))
    assert "2.13, muon, gate_up=apart, precision 32-true. " in page
    assert old not in page


def test_the_page_explains_columns_and_contestants_before_the_first_table(
    tmp_path: Path, result: Result
) -> None:
    race = replace(RACE, contestants=NAMES | {"good": ["experts.num_experts=<4>", "router=gru"]})
    write_result(tmp_path, race, result)
    for name, code in (("README.md", "`router=gru`"), ("index.html", "<code>router=gru</code>")):
        page = (tmp_path / name).read_text()
        table = min(
            place for mark in ("| contestant |", "<table>") if (place := page.find(mark)) > 0
        )
        assert page.index("95 % interval") < page.index(code) < table
    assert "&lt;4&gt;" in (tmp_path / "index.html").read_text()
    foreign = replace(RACE, contestants=NAMES | {"good": ["run=`<script>"]})
    assert "<script>" not in markdown(foreign, "r", result)


def test_an_empty_plot_says_what_is_missing() -> None:
    dense = [row for size in result_of(RACE, [], {}).values() for row in size.rows if row.means]
    for draw, missing in (
        (pictures.forest, "no contestant has ended"),
        (pictures.curves, "no run has ended"),
        (pictures.balance, "no contestant with routers has ended"),
        (pictures.frontier, "not timed yet"),
    ):
        figure = Figure()
        draw(figure, RACE, dense)
        assert any(missing in text.get_text() for axes in figure.axes for text in axes.texts)


def test_a_plot_with_points_says_nothing_of_what_is_missing(result: Result) -> None:
    rows = [row for row in result["xs"].rows if row.means]
    for draw in (pictures.forest, pictures.curves, pictures.balance, pictures.frontier):
        figure = Figure()
        draw(figure, RACE, rows)
        texts = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert not any("not timed" in text or "has ended" in text for text in texts)


def test_another_cost_and_the_edge_of_the_grid_are_marked(rows: dict[str, Row]) -> None:
    assert unequal(RACE, rows["good"]) and not unequal(RACE, rows["same"])
    assert "2.00*" in cells(RACE, rows["good"]) and "1.00" in cells(RACE, rows["same"])
    edge = [{**x, "lr": 0.04} if x["contestant"] == "same" else x for x in lines()]
    row = {r.contestant: r for r in result_of(RACE, edge, {})["xs"].rows}["same"]
    assert cells(RACE, row)[-1] == "0.04!" and cells(RACE, rows["same"])[-1] == "0.02"


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    once = [x for x in lines() if "lr" not in x or x["seed"] in (0, 9)]
    race = read_race(VALUES | {"contestants": NAMES, "seeds": [0]})
    row = {r.contestant: r for r in result_of(race, once, {})["xs"].rows}["good"]
    assert row.difference.bpb.mean == pytest.approx(-0.1) and row.difference.bpb.half is None
    assert row.difference.verdict == "cannot tell" and "-0.100" in cells(RACE, row)


def test_domains_have_tables_of_their_own(result: Result) -> None:
    page = markdown(RACE, "r", result)
    assert "| contestant | a | b |" in page and "| good | -0.100 ± 0.000 | -0.100 ± 0.000 |" in page
    first = LOSS["good"] - 0.5 + fmean(SEEDS.values())
    assert (
        f"| good | {first:.3f} ± "
        in page.split("Bits per byte, by domain:")[1].split("Difference")[0]
    )


def test_a_run_too_short_to_log_its_training_has_empty_cells(rows: dict[str, Row]) -> None:
    routing = {
        name: value
        for name, value in rows["same"].means.routing.items()
        if name not in ("drop_rate", "mean_k")
    }
    assert (
        cells(
            RACE, replace(rows["same"], means=replace(rows["same"].means, routing=routing))
        ).count("")
        == cells(RACE, rows["same"]).count("") + 2
    )


def test_the_files_tell_the_same(result: Result, tmp_path: Path) -> None:
    write_result(tmp_path, RACE, result)
    assert (
        json.loads((tmp_path / "result.json").read_text())["xs"]["rows"][1]["difference"]["verdict"]
        == "better"
    )
    with (tmp_path / "table.csv").open() as file:
        table = {row["contestant"]: row for row in csv.DictReader(file)}
    assert float(table["good"]["difference.bpb.mean"]) == pytest.approx(-0.1)
    page = (tmp_path / "index.html").read_text()
    assert "better" in page and "step 3: not finite" in page and "<!--" not in page
    assert page.count("data:image/png") == 4 and page.count("<td>-0.100 ± 0.000</td>") == 3
    for name in ("differences", "curves", "balance", "frontier"):
        assert (tmp_path / f"xs_{name}.png").read_bytes().startswith(b"\x89PNG")
