"""What every registered score promises, at the values of its YAML."""

from typing import Any

import pytest
import torch
from torch import nn

from app.registry import find, names
from routers.contract import Score, Scored, Sizes
from tests.support.scoring import context, knobs, tokens

SIZES = Sizes(dim=6, num_experts=5, top_k=2, num_layers=2, vocab_size=40)


def stack(name: str, sizes: Sizes = SIZES) -> tuple[nn.ModuleList, nn.Module | None]:
    cls = find("score", name)
    values = knobs("score", name, sizes.top_k)
    layers: list[Score] = [cls(sizes._replace(layer=i), **values) for i in range(sizes.num_layers)]
    shared = layers[0].shared()
    return nn.ModuleList([*layers, *([shared] if shared else [])]), shared


def run(
    name: str, x: torch.Tensor, training: bool = True, sizes: Sizes = SIZES, **more: Any
) -> list[Scored]:
    torch.manual_seed(0)
    modules, shared = stack(name, sizes)
    modules.train(training)
    scored: list[Scored] = []
    for layer in modules[: sizes.num_layers]:
        state = scored[-1].state if scored else None
        scored.append(layer(x, context(len(x), state=state, shared=shared, **more)))
    return scored


@pytest.mark.parametrize("name", names("score"))
class TestScore:
    def test_logits_are_float32_and_one_for_each_expert(self, name: str) -> None:
        for scored in run(name, tokens(7)):
            assert scored.logits.shape == (7, 5) and scored.logits.dtype == torch.float32
            assert (scored.logits > -torch.inf).any(-1).all(), "a token without an allowed expert"

    @pytest.mark.parametrize("factor", [0.0, 1.0, 1e4])
    @pytest.mark.parametrize("num_tokens,num_experts", [(1, 5), (3, 1)])
    def test_hard_inputs_stay_finite(
        self, name: str, factor: float, num_tokens: int, num_experts: int
    ) -> None:
        sizes = SIZES._replace(num_experts=num_experts, top_k=1)
        for scored in run(name, tokens(num_tokens) * factor, sizes=sizes):
            assert scored.logits.masked_fill(scored.logits == -torch.inf, 0).isfinite().all()

    @pytest.mark.parametrize("training", [True, False])
    def test_a_token_is_scored_by_itself_alone(self, name: str, training: bool) -> None:
        x = tokens(8)
        other = torch.cat((x[:5], 100 * tokens(3)))
        for one, two in zip(run(name, x, training), run(name, other, training), strict=True):
            assert torch.equal(one.logits[:5], two.logits[:5])

    def test_recomputation_gives_the_same_logits_and_touches_no_buffer(self, name: str) -> None:
        modules, shared = stack(name)
        before = {key: value.clone() for key, value in modules.named_buffers()}
        x = tokens(4)
        one, two = (modules[0](x, context(4, shared=shared)).logits for _ in range(2))
        assert torch.equal(one, two)
        assert all(torch.equal(value, before[key]) for key, value in modules.named_buffers())

    def test_every_parameter_of_two_layers_gets_a_gradient(self, name: str) -> None:
        modules, shared = stack(name)
        x = tokens(9)
        state = None
        loss = torch.zeros(())
        for layer in modules[:2]:
            scored = layer(x, context(9, state=state, shared=shared))
            allowed = scored.logits.masked_fill(scored.logits == -torch.inf, 0)
            loss = loss + (allowed * torch.randn(9, 5)).sum()
            state = scored.state
        if any(True for _ in modules.parameters()):
            loss.backward()
        for key, parameter in modules.named_parameters():
            assert (
                parameter.grad is not None
                and parameter.grad.isfinite().all()
                and parameter.grad.any()
            ), key

    def test_directions_are_one_row_for_each_expert(self, name: str) -> None:
        modules, _ = stack(name)
        rows = modules[0].directions()
        assert rows is None or rows.size(0) == SIZES.num_experts
