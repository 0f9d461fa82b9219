"""SparseMixer against a step-by-step transcription of its released code without noise and candidate mask."""

import torch

from app.config.parts import build_part
from tests.routers.nano import SIZES

T, E, K = 30, 8, 3
WEIGH = build_part("weigh", "sparsemixer", SIZES)


def transcription(logits: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates (T, K) in the order of `chosen`, and the probabilities whose gradient they carry."""
    left, gates, probs = logits, [], []
    for r in range(chosen.size(1)):
        p = left.softmax(-1)
        here = p.gather(1, chosen[:, r : r + 1])
        best = here >= p.amax(-1, keepdim=True)
        gates.append(torch.where(best, here, here / 2))
        probs.append(here)
        left = left.scatter(1, chosen[:, r : r + 1], -torch.inf)
    return torch.cat(gates, 1), torch.cat(probs, 1)


def case(sampled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(T, E, dtype=torch.float64, requires_grad=True)
    chosen = torch.rand(T, E).topk(K).indices if sampled else logits.topk(K).indices
    order = logits.gather(1, chosen).argsort(descending=True)
    return logits, chosen.gather(1, order)


def test_value_and_gradient_equal_the_transcription_for_the_best_and_for_sampled_experts():
    for sampled in (False, True):
        logits, chosen = case(sampled)
        gate, prob = transcription(logits, chosen)
        mixed = torch.rand(T, K).argsort()  # the order of the assignments of a token does not matter
        token = torch.arange(T).repeat_interleave(K)
        got = WEIGH(WEIGH.scores(logits), token, chosen.gather(1, mixed).flatten()).view(T, K)
        torch.testing.assert_close(got, gate.gather(1, mixed))
        weight = torch.linspace(-1, 1, T * K, dtype=torch.float64).view(T, K)
        ours = torch.autograd.grad((got * weight).sum(), logits, retain_graph=True)
        theirs = torch.autograd.grad((prob.gather(1, mixed) * weight).sum(), logits)
        torch.testing.assert_close(ours, theirs)


def test_only_a_choice_that_was_not_the_likeliest_is_halved():
    scores = torch.tensor([[0.5, 0.3, 0.2]])
    gate = WEIGH(scores, torch.tensor([0, 0]), torch.tensor([2, 0]))
    torch.testing.assert_close(gate, torch.tensor([0.2 / 0.5 / 2, 0.5]))


def test_the_unassigned_have_gate_zero_and_take_no_mass():
    scores = torch.tensor([[0.5, 0.3, 0.2]])
    gate = WEIGH(scores, torch.tensor([0, 0]), torch.tensor([3, 0]))
    torch.testing.assert_close(gate, torch.tensor([0.0, 0.5]))
