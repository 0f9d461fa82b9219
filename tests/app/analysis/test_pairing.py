"""Experts of two runs that do the same are found, whatever their numbers are."""

import random

from app.analysis.pairing import paired, same_text


def sample(choices: list[int | None]) -> dict[str, object]:
    experts = [[] if choice is None else [[choice, 0.7], [9, 0.3]] for choice in choices]
    return {"tokens": ["a"] * len(choices), "experts": [experts]}


def test_renumbered_experts_are_paired_with_what_they_were() -> None:
    draw = random.Random(0)
    to = [3, 0, 4, 1, 2]
    own = [draw.randrange(5) for _ in range(300)]
    other = [draw.randrange(5) if draw.random() < 0.3 else to[choice] for choice in own]
    (partner,) = paired([sample(own)], [sample(other)], (10, 10))
    assert [partner[e] for e in to] == [0, 1, 2, 3, 4]


def test_who_has_more_experts_has_some_without_a_partner() -> None:
    (partner,) = paired([sample([0, 0, 1, None])], [sample([2, 2, 0, 1])], (10, 12))
    assert partner[2] == 0 and partner[0] == 1 and partner.count(None) == 2


def test_a_pair_is_found_for_the_good_of_all() -> None:
    """Expert 0 shares three tokens with both others; 1 shares two with the first alone."""
    (partner,) = paired(
        [sample([0, 0, 0, 0, 0, 0, 1, 1])], [sample([0, 0, 0, 1, 1, 1, 0, 0])], (10, 10)
    )
    assert partner[:2] == [1, 0]


def test_the_same_text_has_the_same_tokens() -> None:
    assert same_text([sample([1, 2])], [sample([3, 4])]) and not same_text(
        [sample([1])], [sample([1, 2])]
    )
