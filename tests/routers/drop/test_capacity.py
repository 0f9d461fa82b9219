"""Capacity by hand-made cases and against a loop over the assignments."""

import math

import pytest
import torch
from torch import Tensor

from app.registry import find
from routers.contract import Context, Drop, Selected
from tests.support.nano import SIZES

E = 4
K = 2


def drop(order: str = "position", **knobs: object) -> Drop:
    values = {"factor": 1.0, "exempt": 0.0, "eval": False} | knobs
    return find("drop", "capacity")(SIZES._replace(num_experts=E), order=order, **values).train()


def choice(seed: int, rows: int = 3, length: int = 7) -> tuple[Selected, Context]:
    torch.manual_seed(seed)
    scores = torch.rand(rows * length, E)
    scores[:, 0] += 0.7  # crowded
    expert = scores.topk(K, sorted=False).indices.flatten()
    valid = torch.rand(rows, length) > 0.1
    token = torch.arange(rows * length).repeat_interleave(K)
    expert = expert.masked_fill(~valid.flatten()[token], E)
    mixed = torch.randperm(len(token))  # in any order
    return Selected(token[mixed], expert[mixed], torch.ones(len(token)), scores, K), Context(
        valid, seed=seed
    )


def loop(order: str, factor: float, made: Selected, context: Context) -> Tensor:
    rows, length = context.valid.shape
    places = {e: math.ceil(factor * rows * length * K / E) for e in range(E)}
    pairs = [
        (int(t), int(e), i)
        for i, (t, e) in enumerate(zip(made.token, made.expert, strict=True))
        if e < E
    ]
    best = {
        t: sorted((e for u, e, _ in pairs if u == t), key=lambda e: -made.scores[t, e])
        for t, _, _ in pairs
    }
    keys = {
        "position": lambda p: (p[0] % length, p[0] // length),
        "choice": lambda p: (best[p[0]].index(p[1]), p[0]),
        "score": lambda p: -made.scores[p[0], p[1]],
    }
    kept = torch.zeros(len(made.token), dtype=torch.bool)
    for _, e, i in sorted(pairs, key=keys[order]):
        if places[e] > 0:
            places[e] -= 1
            kept[i] = True
    return kept


@pytest.mark.parametrize("order", ["position", "choice", "score"])
@pytest.mark.parametrize("factor", [0.3, 1.0, 1.25, 10.0])
def test_what_is_kept_equals_a_loop_over_the_assignments(order, factor):
    for seed in range(5):
        made = choice(seed)
        assert torch.equal(drop(order, factor=factor)(*made), loop(order, factor, *made))


def test_nothing_is_dropped_at_evaluation_unless_asked():
    made, context = choice(0)
    served = made.expert < E
    assert torch.equal(drop(factor=0.1).eval()(made, context), served)
    assert not torch.equal(drop(factor=0.1, eval=True).eval()(made, context), served)


def test_exempt_sequences_keep_all_and_make_up_the_stated_share():
    made, context = choice(0, rows=400, length=2)
    kept = drop("score", factor=0.01, exempt=0.25)(made, context)
    lost = torch.zeros(400).index_add(0, made.token // 2, ((made.expert < E) & ~kept).float())
    assert abs(float((lost == 0).float().mean()) - 0.25) < 0.08
    assert torch.equal(drop("score", factor=0.01, exempt=1.0)(made, context), made.expert < E)


def test_the_exempt_sequences_depend_on_the_seed_alone():
    made, context = choice(0, rows=40)
    part = drop("score", factor=0.01, exempt=0.5)
    assert torch.equal(part(made, context), part(made, context))
    assert not torch.equal(part(made, context), part(made, context._replace(seed=1)))
    for seed in (20_000, 2**32 - 1):
        assert len(
            part(made, context._replace(seed=((seed * 1_000_003 + 9) * 1_000_003 + 1) * 1_000 + 3))
        )


def test_capacity_is_a_constant_of_the_shape():
    made, context = choice(0)
    few = made._replace(expert=made.expert.masked_fill(made.token > 3, E))
    kept = drop(factor=0.3)(few, context)
    assert torch.bincount(few.expert[kept], minlength=E).max() <= math.ceil(0.3 * 21 * K / E)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="factor=0"):
        drop(factor=0)
    with pytest.raises(ValueError, match=r"exempt=1\.5"):
        drop(exempt=1.5)
