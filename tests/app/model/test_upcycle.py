"""A mixture that starts from a dense model."""

import pytest
import torch

from app.config.compose import composed
from app.model.assemble import build_model
from app.model.transformer import Transformer
from app.model.upcycle import upcycle
from app.registry import UserError

V = 50


def build(*overrides: str) -> Transformer:
    torch.manual_seed(1)
    small = [
        "model=nano",
        "tokenizer=bytes",
        "model.hidden_dim=32",
        "model.init_std=0.2",
        "router=mixtral",
    ]
    return build_model(composed([*small, *overrides]), V)


def logits(model: Transformer) -> torch.Tensor:
    tokens = torch.arange(24).view(2, 12)
    return model.eval().logits(tokens)


def routed(model: Transformer) -> torch.nn.Module:
    return model.blocks[0].ffn.experts.routed


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_first_forward_of_a_copied_model_is_the_dense_models(prefix):
    dense = build("experts=dense")
    model = build("experts=coarse", "experts.top_k=3")
    assert not torch.allclose(logits(model), logits(dense), atol=1e-2)
    upcycle(model, {prefix + name: tensor for name, tensor in dense.state_dict().items()}, "copied")
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


def test_dense_layers_and_shared_experts_keep_the_first_forward_too():
    dense = build("experts=dense")
    model = build("experts=shared_gated", "model.first_dense=1")
    upcycle(model, dense.state_dict(), "copied")
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("segments", [2, 4])
def test_the_first_forward_of_a_granular_model_is_the_dense_models(segments):
    dense = build("experts=dense")
    model = build("experts=fine_grained", f"experts.segments={segments}", "experts.num_experts=4")
    upcycle(model, dense.state_dict(), "granular")
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


def equal_scores(model: Transformer) -> Transformer:
    """The model with routers that score all experts alike, but for what breaks ties."""
    for router in model.routers():
        with torch.no_grad():
            for parameter in router.score.parameters():
                parameter.mul_(1e-5)
    return model


@pytest.mark.parametrize("how", ["copied", "granular"])
@pytest.mark.parametrize(
    "router",
    [
        # sums to 2.5 for every token
        ["router=mixtral", "router.weigh.scale=2.5"],
        ["router=sigmoid", "router.weigh.scale=0.5"],
        # softmax over all experts, not normalised: sums to top_k / E at equal scores
        ["router=topk"],
        ["router=sigmoid", "router.weigh.normalize=false"],
        ["router=topk", "router/weigh=sqrt_softplus", "router.weigh.normalize=false"],
    ],
)
def test_gates_that_do_not_sum_to_one_are_made_up_for(how, router):
    dense = build("experts=dense")
    segments = 2 if how == "granular" else 1
    layout = ["experts=fine_grained", f"experts.segments={segments}", "experts.num_experts=4"]
    model = build(*layout, *router)
    upcycle(model, dense.state_dict(), how)
    torch.testing.assert_close(logits(equal_scores(model)), logits(dense), rtol=1e-3, atol=1e-3)


def test_it_can_be_tried_without_memory():
    with torch.device("meta"):
        model = build("experts=coarse", "router=topk")
        upcycle(
            model,
            {
                name: tensor.to("meta")
                for name, tensor in build("experts=dense").state_dict().items()
            },
            "copied",
        )
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("weigh", ["relu", "sigmoid_input"])
def test_gates_that_nothing_makes_up_for_are_refused(weigh):
    model = build("experts=coarse", "router=topk", f"router/weigh={weigh}")
    with pytest.raises(UserError, match=r"init\.checkpoint: "):
        upcycle(model, build("experts=dense").state_dict(), "copied")


@pytest.mark.parametrize(("how", "segments"), [("copied", 1), ("granular", 2)])
def test_biases_are_taken_over_too(how, segments):
    biased = ["experts/activation=clamped_swiglu", "experts.activation.bias=true"]
    dense = build("experts=dense", *biased)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    layout = ["experts=fine_grained", f"experts.segments={segments}", "experts.num_experts=4"]
    model = build(*layout, *biased)
    upcycle(model, dense.state_dict(), how)
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"experts\.activation\.bias"):
        upcycle(build(*layout), dense.state_dict(), how)


def test_drop_upcycling_draws_a_share_of_the_hidden_units_anew_in_every_expert():
    dense = build("experts=dense")
    model = build("experts=coarse")
    upcycle(model, dense.state_dict(), "drop", drop_share=0.25, seed=3)
    w_in, w_out = (
        w.T
        for w in (
            dense.blocks[0].ffn.experts.common.w_in.weight,
            dense.blocks[0].ffn.experts.common.w_out.weight,
        )
    )
    changed = (routed(model).w_out != w_out).any(-1)  # (E, F)
    assert changed.sum(-1).tolist() == [8] * 8
    assert len({tuple(row.tolist()) for row in changed}) > 1
    assert torch.equal((routed(model).w_in != w_in).any(1), changed.repeat(1, 2))


def test_nothing_is_dropped_at_a_share_of_zero_and_the_seed_decides_what_is():
    dense = build("experts=dense").state_dict()
    first = build("experts=coarse")
    second = build("experts=coarse")
    other = build("experts=coarse")
    upcycle(first, dense, "drop", drop_share=0.0)
    upcycle(second, dense, "copied")
    assert torch.equal(routed(first).w_out, routed(second).w_out)
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        upcycle(model, dense, "drop", seed=seed)
    assert torch.equal(routed(first).w_out, routed(second).w_out)
    assert not torch.equal(routed(first).w_out, routed(other).w_out)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experts=coarse", "experts.hidden_dim=16"], "width 16"),
        (["experts=latent"], "Latent cannot be upcycled"),
        (["experts=coarse", "model.dim=64"], "embedding.weight is"),
        (["experts=coarse", "model.num_layers=3"], "fit|layers"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        upcycle(build(*overrides), build("experts=dense").state_dict(), "copied")
    assert "\n" not in str(error.value)
