"""GShard's dispatch against a transcription of its algorithm 1 with the same draws."""

import torch
from torch import Tensor

from routers.contract import Context, Selected
from routers.drop.gshard import GShard
from tests.support.nano import SIZES

E = 4
T = 40


def case(seed: int) -> tuple[Selected, Context]:
    torch.manual_seed(seed)
    scores = (torch.randn(T, E) + torch.tensor([1.0, 0.5, 0.0, 0.0])).softmax(-1)
    gate, expert = scores.topk(2)
    gate = (gate / gate.sum(-1, keepdim=True)).flatten()
    token = torch.arange(T).repeat_interleave(2)
    return Selected(token, expert.flatten(), gate, scores, 2), Context(
        torch.ones(2, T // 2, dtype=torch.bool), seed=seed
    )


def algorithm(made: Selected, capacity: int, drawn: Tensor) -> Tensor:
    """Lines 4 to 18: first choices one after the other, then second ones,
    by chance and while there is room.
    """
    count = dict.fromkeys(range(E), 0)
    kept = torch.zeros(2 * T, dtype=torch.bool)
    for choice in (0, 1):
        for s in range(T):
            a = 2 * s + choice
            e = int(made.expert[a])
            if count[e] < capacity and (choice == 0 or 2 * made.gate[a] > drawn[a]):
                count[e] += 1
                kept[a] = True
    return kept


def test_what_is_used_equals_the_algorithm_and_evaluation_drops_nothing():
    drop = GShard(SIZES._replace(num_experts=E), factor=1.0)
    for seed in range(5):
        made, context = case(seed)
        drawn = context.drawn("drop", E)[made.token, made.expert]
        kept = drop.train()(made, context)
        assert torch.equal(kept, algorithm(made, 2 * T // E, drawn))
        assert drop.eval()(made, context).all()


def test_a_second_expert_is_used_with_twice_its_gate_as_probability():
    scores = torch.tensor([[0.56, 0.14, 0.2, 0.1]]).expand(20_000, 4)  # gates 0.8 and 0.2
    token = torch.arange(20_000).repeat_interleave(2)
    selected = Selected(
        token,
        torch.tensor([0, 1]).repeat(20_000),
        torch.tensor([0.8, 0.2]).repeat(20_000),
        scores,
        2,
    )
    context = Context(torch.ones(1, 20_000, dtype=torch.bool), seed=1)
    kept = GShard(SIZES._replace(num_experts=E), factor=4.0).train()(selected, context).view(-1, 2)
    assert kept[:, 0].all() and abs(float(kept[:, 1].float().mean()) - 0.4) < 0.02
