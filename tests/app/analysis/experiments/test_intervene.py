"""One thing about the experts of a layer is changed, and nothing else,
and only for as long as it is asked for.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from app.analysis.experiments.intervene import forbidden, moe_layers, redirected, unshared
from app.analysis.experiments.masking import best
from app.config.compose import composed
from app.model.assemble import build_model
from app.model.moe import MoE

# 3 of 7
LAYOUT = ["experts=deepseek", "experts.num_experts=4", "experts.segments=2", "experts.num_shared=1"]


@pytest.fixture
def layer() -> MoE:
    torch.manual_seed(3)
    model = build_model(composed(["model=nano", "model.init_std=0.3", "router=topk", *LAYOUT]), 50)
    return moe_layers(model.eval())[0]


@pytest.fixture
def x(layer: MoE) -> Tensor:
    return torch.randn(2, 5, layer.experts.routed.w_in.size(1))


def output(layer: MoE, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)[0]


def expert(layer: MoE, number: int, x: Tensor) -> Tensor:
    """SwiGLU by its formula."""
    gate, up = (x @ layer.experts.routed.w_in[number]).chunk(2, -1)
    return (silu(gate) * up) @ layer.experts.routed.w_out[number]


@torch.no_grad()
def by_definition(
    layer: MoE, x: Tensor, masked: int, serves: dict[int, int] | None = None
) -> Tensor:
    """Token by token: the best `masked` experts are struck out,
    the next three have softmax gates over the rest.
    """
    y = torch.zeros_like(x)
    for place in range(x.size(0) * x.size(1)):
        b, s = divmod(place, x.size(1))
        logits = {e: float(v) for e, v in enumerate(layer.router.score.proj.weight @ x[b, s])}
        for gone in sorted(logits, key=logits.__getitem__)[len(logits) - masked :]:
            del logits[gone]
        share = torch.tensor([*logits.values()]).softmax(0)
        gates = dict(zip(logits, share.tolist(), strict=True))
        for e in sorted(gates, key=gates.__getitem__)[-3:]:
            y[b, s] += gates[e] * expert(layer, (serves or {}).get(e, e), x[b, s])
    return y + layer.experts.common(x)


@pytest.mark.parametrize("masked", [0, 1, 4])
def test_forbidden_experts_are_as_if_they_did_not_exist(layer: MoE, x: Tensor, masked: int) -> None:
    before = output(layer, x)
    with forbidden([layer], lambda logits: best(logits, masked)):
        torch.testing.assert_close(output(layer, x), by_definition(layer, x, masked))
    assert torch.equal(output(layer, x), before)


def test_a_redirected_expert_has_its_gate_and_the_others_weights(layer: MoE, x: Tensor) -> None:
    before = output(layer, x)
    with redirected(layer, torch.tensor([0, 5, 2, 3, 4, 1, 1])):
        torch.testing.assert_close(output(layer, x), by_definition(layer, x, 0, {1: 5, 5: 1, 6: 1}))
    assert torch.equal(output(layer, x), before)


def test_nobody_is_served_by_a_shared_expert_that_is_left_out(layer: MoE, x: Tensor) -> None:
    before = output(layer, x)
    common = layer.experts.common(x).detach()
    with unshared([layer]):
        torch.testing.assert_close(output(layer, x), before - common)
    assert torch.equal(output(layer, x), before)


def test_an_error_inside_leaves_the_model_as_it_was(layer: MoE, x: Tensor) -> None:
    before = output(layer, x)
    hooks: tuple[nn.Module, ...] = (layer.router, layer.router.score)
    with (
        pytest.raises(RuntimeError),
        forbidden([layer], lambda logits: logits > 0),
        unshared([layer]),
    ):
        raise RuntimeError
    assert torch.equal(output(layer, x), before) and not any(hook._forward_hooks for hook in hooks)
