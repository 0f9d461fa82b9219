"""The order is a pure function of seed and position, with exact shares."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config.compose import composed
from app.data.module import build_data
from app.data.order import BLOCK, Order

WEIGHTS = (0.5, 0.25, 0.15, 0.1, 0.0)
ROWS = (100, 50, 30, 7, 3)


def order(seed=0):
    return Order.of(ROWS, [(0, WEIGHTS)], seed)


def test_a_position_has_one_row_however_it_is_reached():
    forward = [order()[p] for p in range(2000)]
    fresh = order()
    assert [fresh[p] for p in reversed(range(2000))] == forward[::-1]


def test_another_seed_is_another_order():
    assert [order(0)[p] for p in range(50)] != [order(1)[p] for p in range(50)]


def test_every_block_holds_each_domains_share():
    for block in range(20):
        counts = Counter(order()[block * BLOCK + place].domain for place in range(BLOCK))
        assert all(
            abs(counts[d] - weight * BLOCK) <= len(WEIGHTS) for d, weight in enumerate(WEIGHTS)
        )


def test_shares_are_exact_in_the_long_run():
    assert order().taken(10**9) == [5 * 10**8, 25 * 10**7, 15 * 10**7, 10**8, 0]


PHASES = [(0, [1, 1, 0]), (300, [0, 1, 3]), (1000, None)]


def test_each_phase_has_its_own_shares_from_its_first_row_on():
    phased = Order.of([100, 50, 10], PHASES, 0)
    # to the end of a block
    domains = [phased[position].domain for position in range(1768)]
    found = [Counter(domains[start:stop]) for start, stop in ((0, 300), (300, 1000), (1000, 1768))]
    assert found == [{0: 150, 1: 150}, {1: 175, 2: 525}, {0: 480, 1: 240, 2: 48}]
    assert phased.taken(1800) == [650, 575, 575]


def test_a_domain_goes_on_in_the_next_phase_where_it_was():
    phased = Order.of([100, 50, 10], PHASES, 0)
    rows = [row.number for position in range(1500) if (row := phased[position]).domain == 1]
    for epoch in range(0, len(rows) - 50, 50):
        assert sorted(rows[epoch : epoch + 50]) == list(range(50))


def test_the_first_phase_is_the_order_without_phases():
    phased = Order.of([100, 50, 10], PHASES, 3)
    plain = Order.of([100, 50, 10], PHASES[:1], 3)
    assert [phased[position] for position in range(256)] == [
        plain[position] for position in range(256)
    ]


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=8), st.integers(0, 10**6), st.integers(0, 5000)
)
@settings(deadline=None, max_examples=200)
def test_counts_never_fall_and_sum_to_the_position(weights, count, more):
    weights[0] += 1
    counted = Order.of([9] * len(weights), [(0, weights), (700, weights[::-1]), (2000, None)], 0)
    first = counted.taken(count)
    then = counted.taken(count + more)
    assert sum(first) == count
    assert all(before <= after for before, after in zip(first, then, strict=True))


def test_a_domain_repeats_no_row_before_all_were_read():
    rows = [row for p in range(8 * BLOCK) if (row := order()[p]).domain == 1]
    for epoch in range(0, len(rows) - 50, 50):
        assert sorted(row.number for row in rows[epoch : epoch + 50]) == list(range(50))
    assert rows[:50] != rows[50:100]


def test_without_weights_domains_come_by_size_and_one_without_rows_never():
    assert Order.of([30, 0, 10], [(0, None)], 0).taken(400) == [300, 0, 100]
    assert Order.of([30, 0, 10], [(0, [1, 2, 1])], 0).taken(400) == [200, 0, 200]


@pytest.mark.parametrize("scale", [1, 1e-6, 1e-9, 1e-30, 1e9])
def test_shares_do_not_depend_on_the_scale_of_the_weights(scale):
    counted = Order.of(ROWS, [(0, [scale * weight for weight in WEIGHTS])], 0).taken(10**6)
    assert all(abs(n - weight * 10**6) <= 1 for n, weight in zip(counted, WEIGHTS, strict=True))
    assert Order.of(ROWS, [(0, [scale] * 5)], 0)[3].domain in range(5)


@pytest.mark.parametrize("small", [1e-3, 1e-6, 4e-7, 1e-7, 1e-12, 1e-300])
def test_a_small_weight_is_not_none(small):
    count = 10**20
    counted = Order.of((9, 9, 9), [(0, [0.3, 0.7, small])], 0).taken(count)
    assert counted[2] == pytest.approx(small / (1 + small) * count, rel=1e-5, abs=1)


@pytest.mark.parametrize("key", ["data.weights", "data.final_weights"])
def test_small_weights_of_a_mix_keep_their_shares_in_both_phases(text, key):
    small = "{one: 3.0e-8, two: 1.0e-8}"
    sources = f"data.sources={{one: {{path: {text}}}, two: {{path: {text}}}}}"
    phases = {"data.weights": "{one: 1, two: 1}", "data.final_weights": "{one: 1, two: 1}"} | {
        key: small
    }
    values = [f"{name}={value}" for name, value in phases.items()]
    config = composed(["data=mix", sources, "data.until=0.5", "tokenizer=bytes", *values])
    source = build_data(config["data"], config["tokenizer"], 0).source
    phase = source.phases[key == "data.final_weights"]
    assert Order.of((50, 50), [(0, phase.weights)], 0).taken(400) == [300, 100]
