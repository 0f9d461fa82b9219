"""Every MoE layer has its own offset, noise and controller state."""

import pytest
import torch

from app.config.compose import composed
from app.model.assemble import build_model
from app.model.transformer import Transformer
from routers.contract import Routing

L = 3
E = 4
V = 257
OFFSETS = ("loss_free", "momentum_bias", "pid", "quantile")


def build(*overrides: str) -> Transformer:
    torch.manual_seed(0)
    small = [
        "model=nano",
        "tokenizer=bytes",
        "model.num_layers=4",
        "experts=coarse",
        f"experts.num_experts={E}",
    ]
    return build_model(composed([*small, "router=sigmoid", *overrides]), V)


def routings(model: Transformer) -> list[Routing]:
    tokens = torch.arange(24).view(2, 12)
    _, found = model(
        tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    )
    assert len(found) == L
    return found


@pytest.mark.parametrize("overrides", [["model.first_dense=1"], ["model.moe_layers=[0,2,3]"]])
def test_a_layer_chooses_by_its_own_row_of_the_offsets(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    model = build(*overrides, "experts.top_k=1", "router.weigh.normalize=false")
    offsets = torch.zeros(L, E)
    for layer in range(L):
        offsets[layer, layer + 1] = 1e3
    monkeypatch.setattr(model.balancer, "offset", lambda: offsets)
    for layer, routing in enumerate(routings(model)):
        assert (routing.expert == layer + 1).all(), f"MoE layer {layer}"
        assert routing.scores.max() <= 1, "the offset acts on the choice alone"


@pytest.mark.parametrize("term", OFFSETS)
def test_a_controller_lowers_the_overloaded_expert_of_each_layer_and_no_other(term: str) -> None:
    model = build("model.first_dense=1", f"balance=[{term}]")
    for layer, router in enumerate(model.routers()):
        bias = torch.zeros(E)
        bias[layer] = 5.0
        router.score.register_forward_hook(
            lambda _, __, scored, bias=bias: scored._replace(logits=scored.logits + bias)
        )
    found = routings(model)
    model.balancer.update(model.balancer.observe(found), torch.tensor(24))
    offset = model.balancer.offset()
    assert offset is not None
    assert offset.argmin(-1).tolist() == [*range(L)]


def test_every_layer_draws_its_own_noise() -> None:
    model = build("model.first_dense=1", "router=noisy_topk")
    noise = []
    for routing in routings(model.train()):
        assert routing.clean is not None and routing.noise_std is not None
        noise.append((routing.logits - routing.clean) / routing.noise_std)
    for one in range(L):
        for other in range(one):
            assert not torch.allclose(noise[one], noise[other], atol=1e-2)
