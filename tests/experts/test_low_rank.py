"""Skills in the parameters, against NumPy: forward, and the gradient by differences."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experts.contract import FeedForward
from experts.low_rank import SkilledLinear, give_skills, in_outputs, in_parameters, skilled

T = 7
D = 6
F = 5
K = 3
R = 2
SCALE = 16.0


def network() -> FeedForward:
    torch.manual_seed(0)
    made = FeedForward(D, F).double()
    give_skills(made, K, R, SCALE)
    for parameter in made.double().parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def numbers(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def token_by_token(made: FeedForward, x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The definition: for each token its own matrices W_0 + scale * sum_i alpha_i A_i B_i,
    then the network.
    """
    rows = []
    for token, shares in zip(x, alpha, strict=True):
        w_in, w_out = (numbers(layer.weight).T.copy() for layer in skilled(made))
        for weight, layer in zip((w_in, w_out), skilled(made), strict=True):
            for share, a, b in zip(
                shares, numbers(layer.skills_a), numbers(layer.skills_b), strict=True
            ):
                weight += SCALE * share * a @ b
        hidden = token @ w_in
        rows.append((silu(hidden[:F]) * hidden[F:]) @ w_out)
    return np.stack(rows)


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(T, D, dtype=torch.float64), torch.randn(T, K, dtype=torch.float64)


def test_the_mixture_in_the_parameters_is_the_definition_in_numpy() -> None:
    made, (x, alpha) = network(), inputs()
    ours = in_parameters(made, alpha, lambda: made(x)).detach().numpy()
    np.testing.assert_allclose(ours, token_by_token(made, x.numpy(), alpha.numpy()), rtol=1e-10)


@pytest.mark.parametrize("what", ["alpha", "x", "a", "b"])
def test_its_gradient_is_the_difference_quotient_of_the_definition(what: str) -> None:
    made, (x, alpha) = network(), inputs()
    leaf = {"alpha": alpha, "x": x, "a": made.w_in.skills_a, "b": made.w_out.skills_b}[what]
    leaf.requires_grad_()
    weight = torch.linspace(-1, 1, T * D, dtype=torch.float64).view(T, D)
    (ours,) = torch.autograd.grad(
        (in_parameters(made, alpha, lambda: made(x)) * weight).sum(), leaf
    )

    def loss() -> float:
        y = token_by_token(made, x.detach().numpy(), alpha.detach().numpy())
        return float((y * weight.numpy()).sum())

    assert leaf.is_contiguous()
    flat = leaf.detach().view(-1)
    numeric = []
    for i in range(flat.numel()):
        old = flat[i].item()
        ends = []
        for step in (1e-6, -1e-6):
            flat[i] = old + step
            ends.append(loss())
        flat[i] = old
        numeric.append((ends[0] - ends[1]) / 2e-6)
    np.testing.assert_allclose(ours.flatten().numpy(), numeric, rtol=1e-5, atol=1e-6)


def test_the_mixture_of_outputs_is_the_sum_of_the_networks_under_one_skill_each() -> None:
    made, (x, alpha) = network(), inputs()
    ours = in_outputs(made, alpha, lambda: made(x)).detach().numpy()
    base = token_by_token(made, x.numpy(), np.zeros((T, K)))
    each = [token_by_token(made, x.numpy(), np.tile(np.eye(K)[i], (T, 1))) - base for i in range(K)]
    expected = base + sum(alpha.numpy()[:, i : i + 1] * each[i] for i in range(K))
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
    assert np.abs(ours - token_by_token(made, x.numpy(), alpha.numpy())).max() > 0.1, (
        "the two levels differ"
    )


def test_a_skill_without_a_mixture_does_nothing_and_a_new_one_changes_no_bit_of_any() -> None:
    torch.manual_seed(2)
    plain = FeedForward(D, F)
    x = torch.randn(T, D)
    before = plain(x)
    give_skills(plain, K, R, SCALE)
    assert torch.equal(plain(x), before)
    assert torch.equal(in_parameters(plain, torch.randn(T, K), lambda: plain(x)), before), (
        "B starts at 0"
    )
    nn.init.normal_(plain.w_in.skills_b)
    assert torch.equal(in_parameters(plain, torch.zeros(T, K), lambda: plain(x)), before)
    assert all(layer.alpha is None for layer in skilled(plain))


def test_a_layer_with_skills_keeps_the_weight_and_starts_as_lecun_would() -> None:
    linear = nn.Linear(4096, 3)
    made = SkilledLinear(linear, 2, 8, SCALE)
    assert made.weight is linear.weight and made.bias is linear.bias
    assert (
        made.skills_a.std().item() == pytest.approx(4096**-0.5, rel=0.02)
        and not made.skills_b.any()
    )
