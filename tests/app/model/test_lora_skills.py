"""A whole model with a library of skills:
which skills act, at which level, and what stays as it was.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.model.assemble import build_model
from app.model.transformer import Transformer
from app.registry import UserError
from experts.low_rank import skilled
from routers.assignments import gates

SKILLS = "experts.skills=[french,python,spanish]"
WORDS = ("model=nano", "router=context", "experts=lora_skills", "router.score.hidden_dims=[]")


def built(compose: Any, *overrides: str, skills: str = SKILLS) -> Transformer:
    """A model whose factors are drawn, so that skills do something."""
    torch.manual_seed(0)
    model = build_model(compose(*WORDS, skills, *overrides), 64).eval()
    for layer in skilled(model):
        nn.init.normal_(layer.skills_b, std=0.02)
    return model


def text(seed: int = 0) -> Tensor:
    return torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(seed))


def hidden(model: Transformer, **more: Any) -> Tensor:
    tokens = text()
    return model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), None, **more)[0]


def with_alpha(model: Transformer, *alpha: float) -> Transformer:
    """The same shares of the skills for every token."""
    last = model.routers()[0].score.net[-1]
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor(alpha))
    return model


LEVELS = pytest.mark.parametrize("level", ["parameter", "layer", "logits"])
LINEARS = pytest.mark.parametrize("linears", ["attention", "ffn", "all"])


@LINEARS
@LEVELS
def test_new_skills_change_no_bit_of_the_dense_model(
    compose: Any, level: str, linears: str
) -> None:
    torch.manual_seed(0)
    dense = build_model(compose("model=nano", "experts=dense", "balance=none"), 64).eval()
    words = (*WORDS, SKILLS, f"experts.level={level}", f"experts.linears={linears}")
    model = build_model(compose(*words), 64).eval()
    left = model.load_state_dict(dense.state_dict(), strict=False)
    assert not left.unexpected_keys and all(
        ".skills_" in k or "router" in k for k in left.missing_keys
    )
    assert torch.equal(hidden(model), hidden(dense))
    places = {
        name.split(".")[2] for name, layer in model.named_modules() if layer in skilled(model)
    }
    assert (
        places == {"attention": {"attention"}, "ffn": {"ffn"}, "all": {"attention", "ffn"}}[linears]
    )


@LINEARS
@pytest.mark.parametrize("skill", [0, 1, 2])
def test_a_mixture_of_one_skill_is_that_skill_alone_bit_for_bit(
    compose: Any, linears: str, skill: int
) -> None:
    model = built(compose, f"experts.linears={linears}")
    alone = built(compose, f"experts.linears={linears}", skills="experts.skills=[only]")
    state = {
        n: p[skill : skill + 1] if ".skills_" in n else p for n, p in model.state_dict().items()
    }
    alone.load_state_dict({n: p for n, p in state.items() if "router" not in n}, strict=False)
    one_hot = [float(i == skill) for i in range(3)]
    mixed = hidden(with_alpha(model, *one_hot))
    single = hidden(with_alpha(alone, 1.0))
    assert torch.equal(mixed, single) and torch.equal(hidden(model, alone=skill), single)
    assert not torch.allclose(single, hidden(model, alone=3)), "the skill does something"


@LINEARS
def test_the_three_levels_agree_on_one_skill_and_differ_on_a_mixture(
    compose: Any, linears: str
) -> None:
    by_level = {}
    for level in ("parameter", "layer", "logits"):
        model = built(compose, f"experts.linears={linears}", f"experts.level={level}")
        one, both = (hidden(with_alpha(model, *alpha)) for alpha in ((0, 1, 0), (0.5, 0.5, 0)))
        by_level[level] = one, both
    first = by_level["parameter"]
    for level in ("layer", "logits"):
        torch.testing.assert_close(by_level[level][0], first[0], atol=1e-5, rtol=1e-4)
        assert (by_level[level][1] - first[1]).abs().max() > 1e-4, level


def test_models_mixed_by_their_outputs_have_mixed_logits(compose: Any) -> None:
    model = with_alpha(built(compose, "experts.level=logits"), 0.5, -0.25, 1.0)
    base, *each = (model.head(hidden(model, alone=i)) for i in (3, 0, 1, 2))
    expected = base + sum(
        share * (own - base) for share, own in zip((0.5, -0.25, 1.0), each, strict=True)
    )
    torch.testing.assert_close(model.logits(text()), expected, atol=1e-5, rtol=1e-4)


@LEVELS
def test_no_later_token_is_looked_at(compose: Any, level: str) -> None:
    model = built(compose, f"experts.level={level}")
    tokens = text()
    nn.init.normal_(model.routers()[0].score.net[-1].weight)
    other = tokens.clone()
    other[:, 7:] = text(1)[:, 7:]
    one = model.logits(tokens)
    two = model.logits(other)
    torch.testing.assert_close(one[:, :7], two[:, :7])
    assert not torch.allclose(one[:, 7:], two[:, 7:])


def test_all_layers_have_the_mixture_of_the_layer_that_scores_and_those_below_have_none(
    compose: Any,
) -> None:
    model = built(compose, "model.num_layers=4", "router.score.at=1")
    nn.init.normal_(
        next(r for r in model.routers() if r.score.net is not None).score.net[-1].weight
    )
    tokens = text()
    _, routings = model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), None)
    below, *above = (gates(routing) for routing in routings)
    assert not below.any() and all(torch.equal(alpha, above[0]) for alpha in above)
    assert above[0].std(0).min() > 0.01, "every token has its own"


def test_the_mixture_starts_nearly_uniform(compose: Any) -> None:
    model = build_model(compose(*WORDS, SKILLS, "router.score.hidden_dims=[32,32]"), 64)
    _, routings = model.hidden(text(), torch.ones(2, 12, dtype=torch.bool), None)
    torch.testing.assert_close(gates(routings[0]), torch.full((24, 3), 1 / 3), atol=0.05, rtol=0)


@LEVELS
def test_recomputed_activations_give_the_same_gradients(compose: Any, level: str) -> None:
    found = []
    for recompute in ("false", "true"):
        model = built(
            compose, f"experts.level={level}", f"model.activation_checkpointing={recompute}"
        ).train()
        tokens = text()
        document = torch.zeros_like(tokens)
        nll, _ = model(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), document)
        nll.sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(grad is not None for grad in found[0].values())
    torch.testing.assert_close(found[0], found[1])


def test_mixlora_takes_two_skills_in_each_layer_by_a_router_of_its_own(compose: Any) -> None:
    words = ("router=mixtral", "experts.linears=ffn", "experts.level=layer", "experts.top_k=2")
    torch.manual_seed(0)
    model = build_model(compose("model=nano", "experts=lora_skills", SKILLS, *words), 64)
    _, routings = model.hidden(text(), torch.ones(2, 12, dtype=torch.bool), None)
    for routing in routings:
        assert ((gates(routing) > 0).sum(-1) == 2).all()
        torch.testing.assert_close(gates(routing).sum(-1), torch.ones(24))
    assert not torch.equal(gates(routings[0]), gates(routings[1]))


def test_a_gate_on_the_input_of_each_expert_is_refused_where_they_are_mixed(compose: Any) -> None:
    with pytest.raises(
        UserError,
        match=r"experts\.name=lora_skills: mixes its "
        r"experts.*router/weigh=identity",
    ):
        build_model(compose("model=nano", "experts=lora_skills", "router=llama4"), 64)
