"""GRIN: what is drawn, how often, and gates and gradients against
transformers' Phi-MoE with the same noise.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from app.config.parts import build_part
from routers.contract import Context
from routers.router import Router
from tests.support.nano import SIZES

EVERY = 60_000


def router(num_experts: int, k: int = 2) -> Router:
    sizes = SIZES._replace(num_experts=num_experts, top_k=k)
    score = build_part("score", "linear", sizes)
    drop = build_part("drop", "none", sizes)
    select = type(build_part("select", "sparsemixer", sizes))(sizes, k=k, eps=0.01)
    return Router(score, build_part("weigh", "sparsemixer", sizes), select, drop, sizes)


def route(logits: Tensor, *, training: bool, seed: int = 0, k: int = 2) -> tuple[Tensor, Tensor]:
    """Gates and experts (T, K) of logits (T, E)."""
    made = router(logits.size(1), k).train(training)
    context = Context(torch.ones(1, len(logits), dtype=torch.bool), seed=seed)
    activated = made.weigh.activated(logits)
    token, expert = made._choose(activated, context)
    return made.weigh(activated, token, expert, context).view(-1, k), expert.view(-1, k)


def test_in_training_every_ordered_pair_of_nearly_equal_experts_is_drawn_equally_often():
    logits = torch.tensor([[2.0, 1.98, 1.97, -1.0]]).expand(EVERY, 4)
    _, expert = route(logits, training=True)
    p = logits[0, :3].softmax(-1)
    share = torch.bincount(expert[:, 0] * 4 + expert[:, 1], minlength=16) / EVERY
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            expected = float(p[first] * p[second] / (1 - p[first]))  # about 1/6
            assert float(share[first * 4 + second]) == pytest.approx(expected, abs=0.01)
    assert float(share.sum()) == pytest.approx(1) and not (expert == 3).any()


def test_an_expert_out_of_the_band_takes_no_part_and_the_gates_are_one():
    gate, expert = route(torch.tensor([[2.0, 1.9, 0.5, -1.0]]), training=False)
    torch.testing.assert_close(gate, torch.ones(1, 2))
    assert expert.tolist() == [[0, 1]]


def test_a_choice_that_was_not_the_likeliest_counts_a_third_except_for_one_in_four():
    logits = torch.tensor([[2.0, 1.98, -1.0]]).expand(EVERY, 3)
    gate, expert = route(logits, training=True, k=1)
    p = logits[0, :2].softmax(-1)
    torch.testing.assert_close(gate[expert == 0], p[0].expand_as(gate[expert == 0]))
    other = gate[expert == 1] / p[1]
    assert float((other > 0.9).float().mean()) == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(
        other[other < 0.9].unique(), torch.tensor([1 / 3]), rtol=1e-5, atol=0
    )


def test_two_seeds_draw_other_experts_and_one_seed_the_same():
    logits = torch.tensor([[2.0, 1.99, 1.98, 1.97]]).expand(200, 4)
    drawn = [route(logits, training=True, seed=seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])


class Drawn:
    """A tensor of noise that stands in for what torch would draw."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def exponential_(self) -> Tensor:
        return self.values

    def uniform_(self) -> "Drawn":
        return self

    def __gt__(self, other: float) -> Tensor:
        return self.values > other


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spread", [0.01, 0.1, 3.0])
def test_experts_gates_and_gradients_equal_phi_moe_with_the_same_noise(
    training, spread, monkeypatch
):
    modeling = pytest.importorskip("transformers.models.phimoe.modeling_phimoe")
    torch.manual_seed(0)
    logits = (2 + spread * torch.randn(400, 8)).requires_grad_()
    context = Context(torch.ones(1, 400, dtype=torch.bool), seed=5)
    gate, expert = route(logits, training=training, seed=5)
    waits = [Drawn(-torch.log1p(-drawn)) for drawn in context.drawn("select", 16).chunk(2, 1)]
    coins = [Drawn(coin[:, None]) for coin in context.drawn("weigh", 8).gather(1, expert).unbind(1)]
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: waits.pop(0))
    monkeypatch.setattr(torch, "rand_like", lambda *_, **__: coins.pop(0))
    theirs, chosen = modeling.sparsemixer(logits, 0.01, training)
    monkeypatch.undo()
    assert torch.equal(expert, chosen)
    torch.testing.assert_close(gate, theirs, rtol=2e-4, atol=0)  # their third is 0.3333
    weight = torch.linspace(-1, 1, 800).view(400, 2)
    ours, reference = (torch.autograd.grad((g * weight).sum(), logits)[0] for g in (gate, theirs))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)
    assert not training or any(
        bool((a != b).any()) for a, b in pairwise([expert[:, 0], logits.argmax(-1)])
    )


def test_the_unassigned_have_gate_zero_and_take_no_mass():
    logits = torch.tensor([[0.5, 0.499, 0.498]], requires_grad=True)
    weigh = build_part("weigh", "sparsemixer", SIZES).eval()
    context = Context(torch.ones(1, 1, dtype=torch.bool))
    gate = weigh(weigh.activated(logits), torch.tensor([0, 0]), torch.tensor([3, 0]), context)
    torch.testing.assert_close(gate, torch.stack([torch.zeros(()), logits[0].softmax(-1)[0]]))
    assert torch.autograd.grad(gate.sum(), logits)[0].isfinite().all()
