"""top_k, group_limited, grouped, top_p, positive:
each equals its rule written out for one token.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from routers.contract import Activated, Context, Sizes
from routers.select.group_limited import GroupLimited
from routers.select.grouped import Grouped
from routers.select.positive import Positive
from routers.select.top_p import TopP
from tests.support.selecting import Pairs, build, every, pairs


def sizes(num_experts: int) -> Sizes:
    return Sizes(dim=8, num_experts=num_experts, top_k=2, num_layers=1, vocab_size=16)


def best(values: np.ndarray, k: int) -> list[int]:
    return np.argsort(-values, kind="stable")[:k].tolist()


def each(choice: Tensor, rule) -> Pairs:
    return {(t, int(e)) for t, row in enumerate(choice.double().numpy()) for e in rule(row)}


def test_top_k_takes_the_k_best() -> None:
    choice = torch.randn(9, 6).softmax(-1)
    assert pairs(build("top_k", k=3), choice) == each(choice, lambda row: best(row, 3))


@pytest.mark.parametrize("score", ["max", "top2"])
@pytest.mark.parametrize(
    "num_experts,groups,limit,k", [(16, 4, 2, 3), (15, 4, 2, 6), (8, 8, 3, 3), (12, 3, 1, 4)]
)
def test_group_limited_stays_in_the_best_groups(
    num_experts: int, groups: int, limit: int, k: int, score: str
) -> None:
    split = np.array_split(np.arange(num_experts), groups)

    def rule(row: np.ndarray) -> list[int]:
        worth = [np.sort(row[g])[::-1][: 1 if score == "max" else 2].sum() for g in split]
        allowed = np.concatenate([split[g] for g in best(np.array(worth), limit)])
        return allowed[best(row[allowed], k)].tolist()

    choice = torch.randn(20, num_experts).sigmoid()
    assert pairs(
        GroupLimited(sizes(num_experts), k=k, groups=groups, limit=limit, score=score), choice
    ) == each(choice, rule)


def test_top2_and_max_may_prefer_different_groups() -> None:
    choice = torch.tensor([[0.9, 0.0, 0.6, 0.5]])
    by = {
        s: pairs(GroupLimited(sizes(4), k=2, groups=2, limit=1, score=s), choice)
        for s in ("max", "top2")
    }
    assert by == {"max": {(0, 0), (0, 1)}, "top2": {(0, 2), (0, 3)}}


def test_a_group_with_one_allowed_expert_beats_a_group_with_none() -> None:
    choice = torch.tensor([[-torch.inf, -torch.inf, -torch.inf, 0.1]])
    assert pairs(GroupLimited(sizes(4), k=1, groups=2, limit=1, score="top2"), choice) == {(0, 3)}


@pytest.mark.parametrize("num_experts,k,groups", [(12, 4, 2), (15, 3, None), (16, 3, 3), (6, 6, 3)])
def test_grouped_takes_equally_many_of_every_group(
    num_experts: int, k: int, groups: int | None
) -> None:
    split = np.array_split(np.arange(num_experts), groups or k)
    choice = torch.randn(20, num_experts).softmax(-1)
    chosen = pairs(Grouped(sizes(num_experts), k=k, groups=groups), choice)
    assert chosen == each(
        choice, lambda row: [g[i] for g in split for i in best(row[g], k // len(split))]
    )
    for group in split:
        assert sum(e in group for _, e in chosen) == 20 * k // len(split)


def top_p(choice: Tensor, p: float, min_k: int = 1, max_k: int | None = None) -> int:
    """How many experts the first token gets."""
    select = TopP(sizes(choice.size(1)), p=p, min_k=min_k, max_k=max_k)
    return sum(t == 0 for t, _ in pairs(select, choice))


def test_top_p_takes_the_shortest_prefix_that_exceeds_p() -> None:
    choice = (2 * torch.randn(50, 8)).softmax(-1)

    def rule(row: np.ndarray) -> list[int]:
        order = best(row, 8)
        return order[: int(np.argmax(np.cumsum(row[order]) > 0.4)) + 1]

    assert pairs(TopP(sizes(8), p=0.4, min_k=1, max_k=None), choice) == each(choice, rule)


def test_a_sum_of_exactly_p_does_not_stop_top_p() -> None:
    assert top_p(torch.full((1, 5), 0.2), 0.4) == 3
    assert top_p(torch.full((1, 16), 1 / 16), 0.4) == 7
    assert top_p(torch.full((1, 16), 1 / 16), 0.5) == 9


@pytest.mark.parametrize("seed", range(20))
def test_p_of_one_keeps_all_experts_and_zero_keeps_one(seed: int) -> None:
    choice = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(-1)
    assert top_p(choice, 1.0) == 16
    assert top_p(choice, 0.0) == 1


def test_top_p_respects_its_bounds() -> None:
    uniform = torch.full((1, 16), 1 / 16)
    assert top_p(uniform, 0.4, max_k=3) == 3
    assert top_p(uniform, 0.0, min_k=5) == 5


def test_an_offset_orders_the_experts_of_top_p_but_does_not_count() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2]])
    choice = scores + torch.tensor([0.0, 0.0, 1.0])
    select = TopP(sizes(3), p=0.4, min_k=1, max_k=None)
    assert pairs(select, choice, scores=scores) == {(0, 2), (0, 0)}  # 0.2, then 0.2 + 0.5 > 0.4


def test_positive_takes_what_is_above_zero_be_it_nothing() -> None:
    choice = torch.tensor([[1e-9, 0.0, -1.0], [-1.0, -2.0, 0.0], [3.0, 2.0, 1.0]])
    assert pairs(Positive(sizes(3)), choice) == {(0, 0), (2, 0), (2, 1), (2, 2)}
    token, expert = Positive(sizes(3))(
        Activated(choice, choice, choice, choice), choice, Context(~every(1, 3))
    )
    assert len(token) == len(expert) == 0


@pytest.mark.parametrize(
    "name,changed,message",
    [
        ("top_k", {"k": 7}, "k=7"),
        ("group_limited", {"groups": 3, "limit": 4}, "limit=4"),
        ("group_limited", {"groups": 3, "limit": 1, "k": 3}, "k=3"),
        ("grouped", {"groups": 4, "k": 2}, "groups=4"),
        ("top_p", {"p": 1.5}, "p=1.5"),
        ("top_p", {"min_k": 3, "max_k": 2}, "min_k=3"),
        ("expert_choice", {"k": 0}, "k=0"),
        ("sinkhorn", {"rounds": 0}, "rounds=0"),
        ("seq_top_k", {"k": 2, "max_k": 1}, "max_k=1"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **changed)
