"""Every balance loss and its gradient against a transcription of its formula in NumPy, float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from routers.contract import Routing
from tests.support.routings import routing, sizes, term

B = 3
S = 5
E = 8
K = 2
D = 4
T = B * S


def case(seed: int, k: int = K) -> tuple[Tensor, Routing]:
    """Random float64 logits with gradient, a random choice, some padding."""
    torch.manual_seed(seed)
    logits = torch.randn(B, S, E, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(B, S) > 0.2
    clean = logits.detach().flatten(0, 1) + 0.3
    std = torch.rand(T, E, dtype=torch.float64) + 0.2
    return logits, routing(
        logits, torch.rand(T, E).topk(k).indices, valid, clean=clean, noise_std=std
    )


def selected(r: Routing) -> np.ndarray:
    matrix = np.zeros((T, E + 1))
    matrix[r.token, r.expert] = 1
    return matrix[:, :E]


def fp(load: np.ndarray, p: np.ndarray) -> float:
    """f.P of the load of some tokens (G) and their probabilities (T', G)."""
    return float((load * len(load) / load.sum() * p.mean(0)).sum())


def sequences(r: Routing, of: np.ndarray, p: np.ndarray) -> list[float]:
    rows = [(np.arange(T) // S == b) & r.valid.numpy().ravel() for b in range(B)]
    return [fp(of[row].sum(0), p[row]) for row in rows if row.any()]


def aux_micro(r: Routing, p: np.ndarray) -> float:
    valid = r.valid.numpy().ravel()
    return fp(selected(r)[valid].sum(0), p[valid])


def aux_sequence(r: Routing, p: np.ndarray) -> float:
    return np.mean(sequences(r, selected(r), p))


def grouped(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), D, E // D).sum(-1)


def device(r: Routing, p: np.ndarray) -> float:
    """As printed: f' the mean of f, P' the sum of P."""
    total = 0.0
    count = 0
    for b in range(B):
        row = (np.arange(T) // S == b) & r.valid.numpy().ravel()
        if not row.any():
            continue
        f = E / (K * row.sum()) * selected(r)[row].sum(0)
        total += (f.reshape(D, -1).mean(-1) * p[row].mean(0).reshape(D, -1).sum(-1)).sum()
        count += 1
    return total / count


def communication(r: Routing, p: np.ndarray) -> float:
    return np.mean(sequences(r, grouped(selected(r)).clip(max=1), grouped(p)))


def seq_v3(r: Routing, p: np.ndarray) -> float:
    best = np.zeros((T, E))
    np.put_along_axis(best, np.argsort(-p, axis=1)[:, :K], 1, axis=1)
    return np.mean(sequences(r, best, p))


def importance(r: Routing, p: np.ndarray) -> float:
    total = (selected(r) * p).sum(0)
    return total.var() / total.mean() ** 2


def entropy(r: Routing, p: np.ndarray) -> float:
    return -(p * np.log(p)).sum(-1)[r.valid.numpy().ravel()].mean()


def mutual_information(r: Routing, p: np.ndarray) -> float:
    mean = p[r.valid.numpy().ravel()].mean(0)
    return entropy(r, p) + (mean * np.log(mean)).sum()


def z_loss(r: Routing, p: np.ndarray) -> float:
    logits = r.logits.detach().numpy()[r.valid.numpy().ravel()]
    return (np.log(np.exp(logits).sum(-1)) ** 2).mean()


def smooth_load(r: Routing, p: np.ndarray) -> float:
    """P(x, i) with the k-th highest of the other logits found one by one."""
    logits, clean, std = (t.detach().numpy() for t in (r.logits, r.clean, r.noise_std))
    load = np.zeros(E)
    for t in np.flatnonzero(r.valid.numpy()):
        for i in range(E):
            kth = np.sort(np.delete(logits[t], i))[-K]
            load[i] += 0.5 * (1 + math.erf((clean[t, i] - kth) / std[t, i] / math.sqrt(2)))
    return load.var() / load.mean() ** 2


def relu_lambda(r: Routing, p: np.ndarray) -> float:
    valid = r.valid.numpy().ravel()
    f = E / (K * valid.sum()) * selected(r)[valid].sum(0)
    return 0.25 * (f * p[valid]).sum(-1).mean()


CASES = [
    ("aux", {"scope": "micro"}, aux_micro),
    ("aux", {"scope": "sequence"}, aux_sequence),
    ("aux", {"scope": "global"}, aux_micro),
    ("device", {"scope": "sequence"}, device),
    ("communication", {"scope": "sequence"}, communication),
    ("seq_v3", {}, seq_v3),
    ("importance", {}, importance),
    ("smooth_load", {}, smooth_load),
    ("entropy", {}, entropy),
    ("mutual_information", {}, mutual_information),
    ("z_loss", {}, z_loss),
    ("relu_lambda", {"start": 0.25}, relu_lambda),
]


@pytest.mark.parametrize(
    ("name", "knobs", "formula"), CASES, ids=[f"{n}-{k.get('scope', '')}" for n, k, _ in CASES]
)
def test_value_and_gradient_equal_the_formula(name, knobs, formula):
    loss = term(name, sizes(E, K), **knobs).double()
    for seed in range(3):
        logits, made = case(seed)
        value = loss.loss([made, made], None)
        np.testing.assert_allclose(
            value.detach(), formula(made, made.scores.detach().numpy()), rtol=1e-6
        )
        grad = torch.autograd.grad(value, logits)[0].flatten()
        # finite differences, the choice held
        for index in (0, 7, 50, 119):
            step = torch.zeros_like(grad).index_fill(0, torch.tensor(index), 1e-6).view_as(logits)
            ends = [_moved(made, logits.detach() + sign * step) for sign in (1, -1)]
            slope = (
                formula(ends[0], ends[0].scores.numpy()) - formula(ends[1], ends[1].scores.numpy())
            ) / 2e-6
            np.testing.assert_allclose(float(grad[index]), slope, rtol=2e-3, atol=2e-6)


def test_the_loss_of_moepp_weighs_experts_without_a_network_by_tau():
    eta = np.where(np.isin(np.arange(E), (1, 4)), 0.6, 1.0)
    size = sizes(E, K)._replace(free=(1, 4))
    for seed in range(3):
        logits, made = case(seed)
        valid = made.valid.numpy().ravel()
        f = E * selected(made)[valid].sum(0) / selected(made)[valid].sum()
        expected = (eta * f * made.scores.detach().numpy()[valid].mean(0)).sum()
        value = (
            term("heterogeneous", size, scope="micro", tau=0.6).double().loss([made, made], None)
        )
        np.testing.assert_allclose(value.detach(), expected, rtol=1e-6)
        assert torch.autograd.grad(value, logits)[0].any()
        alike = (
            term("heterogeneous", size, scope="micro", tau=1.0),
            term("aux", size, scope="micro"),
        )
        torch.testing.assert_close(*(part.double().loss([made], None) for part in alike))


def test_f_counts_the_first_choice_alone_as_in_the_implementations_of_gshard():
    """mean(me * ce) * E * E with ce the share of first choices, as Tensor2Tensor,
    DeepSpeed and Tutel have it.
    """
    torch.manual_seed(0)
    logits = torch.randn(B, S, E) + torch.linspace(0, 1, E)
    made = routing(logits, logits.flatten(0, 1).topk(K).indices.flip(-1))  # whatever their order
    p = made.scores.numpy()
    first = np.eye(E)[p.argmax(-1)].mean(0)
    value = term("aux", sizes(E, K), choices="first").loss([made], None)
    np.testing.assert_allclose(float(value), E * (first * p.mean(0)).sum(), rtol=1e-6)
    assert not np.isclose(
        float(value), float(term("aux", sizes(E, K)).loss([made], None)), rtol=1e-3
    )


def test_orthogonality_is_the_sum_of_absolute_entries():
    rows = torch.randn(E, 5)
    made = case(0)[1]._replace(directions=rows)
    value = term("orthogonality", sizes(E, K)).loss([made], None)
    np.testing.assert_allclose(
        float(value), np.abs(rows.numpy() @ rows.numpy().T - np.eye(E)).sum(), rtol=1e-5
    )


def test_with_plain_top_k_the_v3_loss_is_the_sequence_loss_and_with_an_offset_it_is_not():
    torch.manual_seed(0)
    logits = torch.randn(B, S, E)
    plain = routing(logits, logits.flatten(0, 1).topk(K).indices)
    moved = routing(logits, (logits.flatten(0, 1) + 3 * torch.randn(E)).topk(K).indices)
    sequence = term("aux", sizes(E, K), scope="sequence")
    v3 = term("seq_v3", sizes(E, K))
    torch.testing.assert_close(sequence.loss([plain], None), v3.loss([plain], None))
    assert not torch.isclose(sequence.loss([moved], None), v3.loss([moved], None))


def test_a_token_with_all_experts_is_surely_among_the_best_in_the_smooth_load():
    logits, made = case(0, k=E)
    value = term("smooth_load", sizes(E, E)).loss([made], None)
    assert value.detach() == 0
    assert torch.autograd.grad(value, logits)[0].eq(0).all()


def _moved(made: Routing, logits: Tensor) -> Routing:
    """The same choice with other logits."""
    flat = logits.flatten(0, 1)
    scores = flat.softmax(-1)
    return made._replace(logits=flat, scores=scores)
