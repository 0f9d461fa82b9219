"""What every balance loss is worth where its value is known,
and which cuts of a batch leave its gradient alone.
"""

import math

import pytest
import torch
from torch import Tensor, distributed, nn

from app.config.parts import build_part
from app.registry import names
from routers.collectives import num_ranks, rank_sum
from routers.contract import Balance, Routing, Score
from tests.support.ranks import each
from tests.support.routings import routing, sizes, term, uniform

FAMILY = ("aux", "device", "communication", "seq_v3")  # f.P
SCOPES = ("micro", "sequence", "global")


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 2), (8, 3), (12, 12), (16, 6)])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", FAMILY)
def test_an_fp_loss_is_one_at_uniform_load_for_any_k_and_any_number_of_experts(
    name, scope, num_experts, top_k
):
    size = sizes(num_experts, top_k)
    loss = term(name, size, **({} if name == "seq_v3" else {"scope": scope}))
    made = [uniform(num_experts, top_k)] * 2
    torch.testing.assert_close(loss.loss(made, None), torch.tensor(1.0))


@pytest.mark.parametrize("shift", [0.0, -50.0, -60.0, -1e4, 1e3])
@pytest.mark.parametrize("weigh", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("name", FAMILY)
def test_no_shift_of_the_logits_lowers_an_fp_loss(name, weigh, shift):
    made = uniform(8, 2)
    activated = build_part("weigh", weigh).activated(made.logits + shift)
    shifted = made._replace(
        logits=activated.logits, scores=activated.scores, probabilities=activated.probabilities
    )
    torch.testing.assert_close(term(name, sizes(8, 2)).loss([shifted] * 2, None), torch.tensor(1.0))


@pytest.mark.parametrize("scope", SCOPES)
def test_the_expert_level_loss_is_e_over_k_times_the_mass_at_collapse(scope):
    logits = torch.zeros(2, 8, 4)
    logits[..., 0] = 20
    made = routing(logits, torch.zeros(16, 1, dtype=torch.int64))
    torch.testing.assert_close(
        term("aux", sizes(4, 1), scope=scope).loss([made], None), torch.tensor(4.0)
    )


def test_the_neutral_values_that_the_docstrings_state():
    size = sizes(8, 2)
    made = [uniform(8, 2)] * 2
    torch.testing.assert_close(
        term("z_loss", size).loss(made, None), torch.tensor(math.log(8) ** 2)
    )
    torch.testing.assert_close(term("importance", size).loss(made, None), torch.tensor(0.0))
    torch.testing.assert_close(term("entropy", size).loss(made, None), torch.tensor(math.log(8)))
    torch.testing.assert_close(
        term("mutual_information", size).loss(made, None), torch.tensor(0.0), atol=1e-6, rtol=0
    )
    noisy = [r._replace(clean=torch.zeros(16, 8), noise_std=torch.ones(16, 8)) for r in made]
    torch.testing.assert_close(
        term("smooth_load", size).loss(noisy, None), torch.tensor(0.0), atol=1e-9, rtol=0
    )
    rows = torch.linalg.qr(torch.randn(16, 8)).Q.T
    aligned = [r._replace(directions=rows) for r in made]
    torch.testing.assert_close(
        term("orthogonality", size).loss(aligned, None), torch.tensor(0.0), atol=1e-4, rtol=0
    )
    lam = term("relu_lambda", size, start=0.5)
    # softmax scores of a token sum to 1
    torch.testing.assert_close(lam.loss(made, None), torch.tensor(0.5))


def test_importance_of_two_equal_experts_alone_is_e_over_k_minus_one():
    made = routing(torch.zeros(1, 6, 8), torch.tensor([[0, 1]]).expand(6, 2))
    torch.testing.assert_close(
        term("importance", sizes(8, 2)).loss([made], None), torch.tensor(3.0)
    )


def test_the_prior_is_the_squared_distance_of_the_mean_gates_and_pulls_towards_it():
    made = routing(torch.zeros(1, 6, 8), torch.tensor([[0, 1]]).expand(6, 2))
    # means 1.5, -0.5, and 0 of the others
    gate = torch.tensor([1.5, -0.5]).repeat(6).requires_grad_()
    made = made._replace(gate=gate)
    loss = term("prior", sizes(8, 2), target=[1.0, 0.0, *[0.25] * 6]).loss([made, made], None)
    torch.testing.assert_close(loss, torch.tensor(0.5**2 + 0.5**2 + 6 * 0.25**2))
    (slope,) = torch.autograd.grad(loss, gate)
    torch.testing.assert_close(slope, torch.tensor([1.0, -1.0]).repeat(6) / 6)
    even = routing(torch.zeros(1, 8, 8), torch.arange(8)[None].expand(8, 8))
    torch.testing.assert_close(term("prior", sizes(8, 8)).loss([even], None), torch.tensor(0.0))


def test_mutual_information_is_minus_ln_e_for_sure_tokens_that_use_all_experts():
    logits = 50 * torch.eye(8)[None]
    made = routing(logits, torch.arange(8)[:, None])
    torch.testing.assert_close(
        term("mutual_information", sizes(8, 1)).loss([made], None), -torch.tensor(8.0).log()
    )


def test_entropy_of_one_hot_probabilities_is_zero_with_a_finite_gradient():
    logits = (200 * torch.eye(8)[None]).requires_grad_()
    loss = term("entropy", sizes(8, 1)).loss([routing(logits, torch.arange(8)[:, None])], None)
    assert loss.abs() < 1e-6
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_the_losses_that_need_more_say_so_when_the_model_is_built():
    for name in ("smooth_load", "orthogonality"):
        with pytest.raises(ValueError, match="set router/score="):
            term(name, sizes(8, 2)).check(Score(), build_part("select", "top_k"))


# Gradient laws: rows are 4 sequences, cut as the training step cuts them


def batch(seed: int = 0) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(8, 8, bias=False), torch.randn(4, 6, 8)


def forward(router: nn.Linear, x: Tensor) -> list[Routing]:
    logits = router(x)
    return [routing(logits, logits.flatten(0, 1).topk(2).indices)] * 2


def accumulated(loss: Balance, router: nn.Linear, micros: list[Tensor]) -> Tensor:
    """The gradient of the mean over micro-batches, each seeing the earlier ones,
    as in the training step.
    """
    seen = None
    total = torch.zeros_like(router.weight)
    for x in micros:
        routings = forward(router, x)
        total += torch.autograd.grad(loss.loss(routings, seen), router.weight)[0] / len(micros)
        observed = loss.observe(routings).detach()
        seen = observed if seen is None else seen + observed
    return total


@pytest.mark.parametrize("name", FAMILY)
def test_sequence_scope_has_one_gradient_whole_and_in_accumulated_quarters(name):
    router, x = batch()
    loss = term(name, sizes(8, 2), **({} if name == "seq_v3" else {"scope": "sequence"}))
    torch.testing.assert_close(
        accumulated(loss, router, [x]), accumulated(loss, router, list(x.split(1)))
    )


CUTS = [
    (name, scope)
    for name in FAMILY
    for scope in ("sequence", "global")
    if (name, scope) != ("seq_v3", "global")
]


def cut_term(name: str, scope: str) -> Balance:
    return term(name, sizes(8, 2), **({} if name == "seq_v3" else {"scope": scope}))


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The mean of the gradients of two real ranks with half the rows each, for every cut,
    as either rank has it.
    """

    def work(rank: int) -> dict[str, Tensor]:
        distributed.init_process_group("gloo", rank=rank, world_size=2)
        router, x = batch()
        mine = {
            " ".join(cut): accumulated(cut_term(*cut), router, [x.split(2)[rank]]) for cut in CUTS
        }
        return {cut: rank_sum(gradient) / 2 for cut, gradient in mine.items()} | {
            "ranks": torch.tensor(num_ranks())
        }

    return each(work, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("cut", CUTS, ids=" ".join)
def test_sequence_and_global_scope_have_one_gradient_on_one_rank_and_on_two(cut, on_two_ranks):
    router, x = batch()
    for found in on_two_ranks:
        assert found["ranks"] == 2
        torch.testing.assert_close(found[" ".join(cut)], accumulated(cut_term(*cut), router, [x]))


@pytest.mark.parametrize("name", FAMILY[:3])
def test_micro_scope_is_the_mean_of_the_micro_batches_own_gradients(name):
    router, x = batch()
    loss = term(name, sizes(8, 2), scope="micro")
    own = [accumulated(loss, router, [micro]) for micro in x.split(2)]
    torch.testing.assert_close(
        accumulated(loss, router, list(x.split(2))), torch.stack(own).mean(0)
    )
    assert not torch.allclose(own[0], own[1])


@pytest.mark.parametrize("name", FAMILY[:3])
def test_global_scope_over_micro_batches_uses_the_counts_so_far(name):
    router, x = batch()
    loss = term(name, sizes(8, 2), scope="global")
    first, second = x.split(2)
    seen = loss.observe(forward(router, first)).detach()
    both = forward(router, second)
    f = (seen + loss.observe(both))[:1]
    f = f.size(-1) * f / f.sum()
    p = loss.probabilities(both[0]).sum(0) / 12
    torch.testing.assert_close(loss.loss(both, seen), (f * p).sum())


@pytest.mark.parametrize("name", names("balance"))
def test_a_loss_ignores_padding_and_rows_that_are_all_padding(name):
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 8)
    choice = torch.rand(12, 8).topk(2).indices
    more = {
        "clean": torch.randn(12, 8),
        "noise_std": torch.rand(12, 8) + 0.1,
        "directions": torch.randn(8, 8),
    }
    short = routing(logits, choice, **more)
    longer = {
        key: torch.cat([value, torch.randn(6, 8)]) if len(value) == 12 else value
        for key, value in more.items()
    }
    valid = torch.tensor([[True] * 6, [True] * 6, [False] * 6])
    padded = routing(
        torch.cat([logits, torch.randn(1, 6, 8)]), torch.cat([choice, choice[:6]]), valid, **longer
    )
    loss = term(name, sizes(8, 2))
    value = loss.loss([short] * 2, None)
    other = loss.loss([padded] * 2, None)
    assert (value is None) == (other is None)
    if value is not None:
        torch.testing.assert_close(value, other)
    torch.testing.assert_close(loss.observe([short] * 2), loss.observe([padded] * 2))
