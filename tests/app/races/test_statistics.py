"""The statistics of races keep what they promise: on made-up results whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from app.races.statistics import (
    Interval,
    detectable,
    difference_p,
    equivalence_p,
    holm,
    interval,
    judged,
)

TIMES = 4000
# of a rate of 5 % over so many experiments
NOISE = 3 * (0.05 * 0.95 / TIMES) ** 0.5


def draws(mean: float, seeds: int, spread: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, (TIMES, seeds))


@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_an_interval_covers_the_true_mean_in_95_of_100_cases(seeds: int) -> None:
    found = [interval(values) for values in draws(0.7, seeds).tolist()]
    covered = np.mean([abs(each.mean - 0.7) <= each.half for each in found])
    assert abs(covered - 0.95) < NOISE


def test_no_difference_is_called_one_in_5_of_100_cases() -> None:
    assert (
        abs(np.mean([difference_p(values) < 0.05 for values in draws(0, 5).tolist()]) - 0.05)
        < NOISE
    )


@pytest.mark.nightly
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_difference_of_the_margin_is_called_equivalent_in_at_most_5_of_100_cases(
    sign: int,
) -> None:
    rate = np.mean([equivalence_p(values, 1.0) < 0.05 for values in draws(sign, 5, 0.2).tolist()])
    # with so little spread the other bound is far away, and the test is exact
    assert abs(rate - 0.05) < NOISE


@pytest.mark.nightly
def test_no_difference_is_called_equivalent_where_the_margin_is_wide() -> None:
    assert (
        np.mean([equivalence_p(values, 1.0) < 0.05 for values in draws(0, 5, 0.2).tolist()]) > 0.99
    )


def test_holm_errs_in_at_most_5_of_100_families_and_more_often_without_it() -> None:
    ps = np.array(
        [
            [difference_p(v) for v in family]
            for family in np.random.default_rng(1).normal(size=(1000, 8, 5))
        ]
    )
    noise = 3 * (0.05 * 0.95 / len(ps)) ** 0.5
    assert np.mean([min(holm(family, 8)) < 0.05 for family in ps]) < 0.05 + noise
    assert np.mean(ps.min(1) < 0.05) > 0.25


def test_holm_is_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([], 0) == []


def test_tests_that_are_still_to_be_made_count() -> None:
    early = holm([0.01, 0.03], 4)
    late = holm([0.01, 0.03, 0.02, 0.04], 4)
    assert early == pytest.approx([0.04, 0.09]) and all(
        one >= other for one, other in zip(early, late, strict=False)
    )


def test_the_four_verdicts() -> None:
    spread = [-0.002, -0.001, 0.0, 0.001, 0.002]
    verdicts = judged(
        {
            "better": [value - 0.05 for value in spread],
            "worse": [value + 0.05 for value in spread],
            "equivalent": [value + 0.001 for value in spread],
            "cannot tell": [10 * value + 0.01 for value in spread],
        },
        margin=0.01,
        number=4,
    )
    assert {name: each.verdict for name, each in verdicts.items()} == {
        name: name for name in verdicts
    }


def test_a_tie_is_a_tie_and_one_seed_has_no_interval() -> None:
    found = judged(
        {"same": [0.0, 0.0, 0.0], "always": [0.5, 0.5], "once": [-0.5]}, margin=0.01, number=3
    )
    assert found["same"].verdict == "equivalent" and found["same"].p_difference == 1
    assert found["always"].verdict == "worse"
    assert found["once"].verdict == "cannot tell" and found["once"].difference == Interval(
        -0.5, None
    )


def test_a_verdict_counts_its_rivals() -> None:
    borderline = [-0.02, -0.03, -0.01, -0.025, -0.0005]
    assert stats.ttest_1samp(borderline, 0).pvalue < 0.05
    assert judged({"a": borderline}, 0.001, 1)["a"].verdict == "better"
    rivals = {f"r{i}": list(np.random.default_rng(i).normal(size=5)) for i in range(9)}
    assert judged({"a": borderline, **rivals}, 0.001, 10)["a"].verdict == "cannot tell"


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_detectable_difference_is_seen_four_times_out_of_five(seeds: int) -> None:
    difference = detectable(2.0, seeds)
    seen = np.mean(
        [difference_p(values) < 0.05 for values in draws(difference, seeds, 2.0).tolist()]
    )
    assert abs(seen - 0.8) < 3 * (0.16 / TIMES) ** 0.5
