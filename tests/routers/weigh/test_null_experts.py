"""Experts that return 0: they are chosen and counted,
but take no share of a gate (AdaMoE, MoE++).
"""

import pytest
import torch

from app.config.parts import build_part
from app.registry import names
from routers.contract import Context, Scored
from routers.router import Router
from tests.support.nano import SIZES, layout, model


def gates(
    weigh: str, logits: torch.Tensor, null: tuple[int, ...], normalize: bool = True
) -> torch.Tensor:
    """Gates (T, E) of the two best of four experts."""
    sizes = SIZES._replace(num_experts=4, null=null)
    part = build_part("weigh", weigh, sizes)
    part.normalize = normalize
    router = Router(
        build_part("score", "linear", sizes),
        part,
        build_part("select", "top_k", sizes),
        build_part("drop", "none", sizes),
        sizes,
    )
    router.score.forward = lambda x, context: Scored(logits)
    routing = router(
        torch.zeros(len(logits), 4), Context(torch.ones(1, len(logits), dtype=torch.bool))
    )
    assert routing.kept.all() and (routing.expert < 4).all(), (
        "a null expert is an assignment as others are"
    )
    return torch.zeros(len(logits), 5).index_put((routing.token, routing.expert), routing.gate)[
        :, :4
    ]


def test_a_zero_experts_gate_is_zero_and_the_others_sum_to_one_as_in_the_code_of_moepp():
    logits = torch.tensor([[0.0, 1.0, 0.0, 2.0]])
    torch.testing.assert_close(gates("softmax", logits, (3,)), torch.tensor([[0.0, 1, 0, 0]]))
    torch.testing.assert_close(
        gates("softmax", logits, ()), torch.tensor([[0, 0.26894143, 0, 0.73105857]])
    )


@pytest.mark.parametrize("weigh", [name for name in names("weigh") if name != "sparsemixer"])
def test_with_every_weighing_the_experts_that_work_share_the_gate(weigh):
    torch.manual_seed(0)
    logits = 1 + torch.rand(30, 4)
    for normalize in (True, False):
        plain = gates(weigh, logits, (), normalize)
        null = gates(weigh, logits, (1, 3), normalize)
        working = plain * torch.tensor([1.0, 0, 1, 0])
        expected = working / working.sum(-1, keepdim=True).clamp_min(1e-9) if normalize else working
        torch.testing.assert_close(null, expected)
        assert null.sum(-1).eq(0).any() and null.sum(-1).gt(0).any()


def test_the_layouts_tell_which_of_their_experts_compute_next_to_nothing():
    moepp = layout("moepp")
    longcat = layout("longcat")
    assert moepp.null == (8,) and moepp.free == (8, 9, 10, 11)
    assert longcat.null == () and longcat.free == (8, 9, 10, 11)
    x = torch.randn(3, 16)
    ends = torch.tensor([0] * 8 + [3] * 4)
    assert not moepp(x, ends).any(), "expert 8 returns 0"


def test_the_constants_of_moepp_keep_their_own_start():
    net = model(experts="moepp")
    vectors = torch.cat([block.ffn.experts.constant.flatten() for block in net.blocks])
    assert 0.8 < float(vectors.detach().std()) < 1.2, "N(0, 1), not the model's init_std of 0.1"
