"""growing_k and expert_threshold: what a selection does at which step of a training."""

import pytest
import torch
from torch import Tensor

from routers.contract import Activated, Context, Select
from routers.select.growing_k import GrowingK
from tests.support.selecting import SIZES, build, every


def chosen(
    select: Select, logits: Tensor, step: int, offset: Tensor | float = 0.0
) -> set[tuple[int, int]]:
    scores = logits.sigmoid()
    activated = Activated(logits, scores, scores.log(), scores)
    choice = (logits if select.by == "logits" else scores) + offset
    token, expert = select(activated, choice, Context(every(1, len(logits)), step=step))
    return {
        (t, e) for t, e in zip(token.tolist(), expert.tolist(), strict=True) if e < logits.size(1)
    }


@pytest.mark.parametrize(
    ("step", "k"), [(0, 2), (24, 2), (25, 3), (50, 4), (99, 5), (100, 6), (500, 6)]
)
def test_k_grows_linearly_from_its_start_and_is_whole_in_evaluation(step, k):
    torch.manual_seed(0)
    logits = torch.randn(9, 6)
    select = GrowingK(SIZES, k=6, start=2, steps=100)
    best = logits.argsort(-1, descending=True)
    assert chosen(select.train(), logits, step) == {
        (t, int(e)) for t in range(9) for e in best[t, :k]
    }
    assert len(chosen(select.eval(), logits, step)) == 9 * 6


def test_experts_choose_their_tokens_until_the_threshold_is_known_and_then_tokens_their_experts():
    torch.manual_seed(0)
    logits = torch.randn(12, 6)
    tau = torch.linspace(-0.5, 0.5, 6)
    select = build("expert_threshold", warmup_steps=5)
    # 2 of 6 experts for 12 tokens: 4 tokens an expert
    best = logits.argsort(0, descending=True)[:4]
    by_experts = {(int(best[i, e]), e) for i in range(4) for e in range(6)}
    by_tokens = {(t, e) for t in range(12) for e in range(6) if logits[t, e] > tau[e]}
    assert chosen(select.train(), logits, 4) == by_experts
    assert chosen(select.train(), logits, 5, -tau) == by_tokens != by_experts
    assert chosen(select.eval(), logits, 0, -tau) == by_tokens


def test_positive_takes_experts_by_their_logits_whatever_the_activation():
    logits = torch.tensor([[-3.0, -0.1, 0.1, 3.0]])
    assert chosen(build("positive"), logits, 0) == {(0, 2), (0, 3)}, (
        "sigmoid scores are all above 0"
    )
