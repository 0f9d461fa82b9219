"""MoE layers with other parts of a router than the rest:
what `router.layers` gives to which layer.
"""

from typing import Any

import pytest
import torch

from app.model.assemble import _warn_of_look_ahead, build_model
from app.model.transformer import Transformer
from app.registry import UserError
from routers.router import Router

MLP = {"name": "mlp", "hidden_dim": 8, "activation": "relu"}


def build(compose: Any, layers: dict[str, Any], *overrides: str) -> Transformer:
    config = compose("model.num_layers=5", *overrides)
    config["router"]["layers"] = layers
    return build_model(config, 64)


def scores(model: Transformer) -> list[str]:
    return [type(router.score).__name__ for router in model.routers()]


def test_deepseek_v4_hashes_in_its_first_three_moe_layers_and_scores_in_the_others(compose):
    model = build_model(
        compose("router=deepseek_v4", "model.num_layers=6", "model.first_dense=1"), 64
    )
    assert scores(model) == ["Hash"] * 3 + ["Linear"] * 2
    assert (
        all(router.weigh.scale == 1.5 for router in model.routers())
        and model.routers()[0].score.proj is not None
    )
    nll, _ = model(
        *(torch.arange(16).view(2, 8) % 64,) * 2,
        torch.ones(2, 8, dtype=torch.bool),
        torch.zeros(2, 8),
    )
    nll.sum().backward()
    assert all(p.grad is not None for router in model.routers() for p in router.parameters())


def test_layers_are_counted_from_either_end_and_the_later_entry_wins(compose):
    layers = {
        "ends": {"at": [0, -1, 9, -9], "score": MLP},
        "second": {"at": [4], "score": {"name": "linear", "bias": True}},
    }
    model = build(compose, layers)
    assert scores(model) == ["MLP", "Linear", "Linear", "Linear", "Linear"]
    assert (
        model.routers()[4].score.proj.bias is not None
        and model.routers()[3].score.proj.bias is None
    )


def test_a_layer_may_take_another_number_of_experts(compose):
    model = build(compose, {"bottom": {"at": [0, 1], "select": {"name": "top_k", "k": 3}}})
    assert [router.top_k for router in model.routers()] == [3, 3, 4, 4, 4]


def test_a_shared_cell_is_found_where_only_a_router_above_has_one(compose):
    gru = compose("router=gru")["router"]["score"]
    model = build(compose, {"all": {"at": [0, 1, 2, 3, 4], "score": gru}})
    assert model.shared_score is not None and isinstance(model.routers()[0], Router)


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        ({"a": {"at": [5]}}, r"router\.layers\.a\.at=\[5\]: names none of the 5 MoE layers"),
        ({"a": {"at": ["b"]}}, r"router\.layers\.a\.at=\['b'\]: names none"),
        ({"a": {"score": MLP}}, r"router\.layers\.a: must have the list `at`"),
        (
            {"a": {"at": [0], "scores": MLP}},
            r"router\.layers\.a\.scores: unknown; did you mean "
            r"'score'",
        ),
        (
            {"a": {"at": [0], "score": {"name": "mpl"}}},
            r"router\.layers\.a\.score=mpl: unknown; "
            r"did you mean 'mlp'",
        ),
        (
            {"a": {"at": [0], "score": MLP | {"hidden_dim": 0}}},
            r"router\.layers\.a\.score\.hidden_dim=0",
        ),
        ({"a": {"at": [0], "select": {"name": "expert_choice", "k": 2}}}, "allow_non_causal=true"),
        ({"a": {"at": [1], "select": {"name": "positive"}}}, "add relu_lambda or threshold"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(compose, layers, line):
    with pytest.raises(UserError, match=line):
        build(compose, layers)


def test_a_score_that_hands_a_state_up_must_be_in_all_layers(compose):
    with pytest.raises(UserError, match="hands a state to the layer above, so all layers need it"):
        build(compose, {"top": {"at": [-1], "score": MLP}}, "router=gru")


def test_a_look_at_later_tokens_is_warned_of_once_for_all_layers(compose, caplog):
    # another test may have warned
    _warn_of_look_ahead.cache_clear()
    build_model(compose("model.num_layers=3", "router=sinkhorn"), 64)
    said = [
        record.message for record in caplog.records if "looks at later tokens" in record.message
    ]
    assert said == [
        "router.select.name=sinkhorn: looks at later tokens in training (not in evaluation)"
    ]
