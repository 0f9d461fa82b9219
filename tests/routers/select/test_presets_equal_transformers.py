"""Presets against `transformers`' own routers with copied weights:
same experts, same gates, to 1e-5.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from routers.contract import Context, Sizes
from routers.router import Router
from tests.support.presets import build

transformers = pytest.importorskip("transformers")
SIZES = Sizes(dim=12, num_experts=16, top_k=4, num_layers=2, vocab_size=32)
PLAIN = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
# above the layers that DeepSeek-V4 hashes
TOP = SIZES._replace(num_layers=5, layer=4)
CONFIG = SimpleNamespace(
    hidden_size=12,
    num_experts=16,
    num_local_experts=16,
    n_routed_experts=16,
    num_experts_per_tok=4,
    norm_topk_prob=False,
    topk_method="group_limited_greedy",
    n_group=8,
    topk_group=4,
    routed_scaling_factor=2.5,
    scoring_func="sqrtsoftplus",
    vocab_size=32,
    router_hidden_size=6,
    rms_norm_eps=1e-5,
)


def module(family: str, name: str, *more: Any, **changed: Any) -> nn.Module:
    """A router of transformers, its weights drawn from N(0, 1)."""
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    built = getattr(modeling, name)(SimpleNamespace(**{**vars(CONFIG), **changed}), *more)
    for parameter in built.parameters():
        nn.init.normal_(parameter)
    return built


def dense(expert: Tensor, gate: Tensor, num_experts: int = 16) -> Tensor:
    return torch.zeros(len(expert), num_experts).scatter(1, expert, gate)


def gates(router: Router, x: Tensor, **more: Any) -> Tensor:
    """Gates as a matrix (T, E)."""
    routing = router(
        x, Context(torch.ones(1, len(x), dtype=torch.bool), torch.arange(len(x)), **more)
    )
    matrix = torch.zeros(len(x), 17).index_put((routing.token, routing.expert), routing.gate)
    return matrix[:, :16]


@pytest.mark.parametrize(
    "preset,family,name,changed",
    [
        ("mixtral", "mixtral", "MixtralTopKRouter", {}),
        ("olmoe", "olmoe", "OlmoeTopKRouter", {}),
        ("topk", "qwen2_moe", "Qwen2MoeTopKRouter", {}),
        ("mixtral", "qwen3_moe", "Qwen3MoeTopKRouter", {"norm_topk_prob": True}),
        (
            "deepseek_v1",
            "deepseek_v2",
            "DeepseekV2TopkRouter",
            {"topk_method": "greedy", "routed_scaling_factor": 1.0},
        ),
        (
            "deepseek_v2",
            "deepseek_v2",
            "DeepseekV2TopkRouter",
            {"n_group": 4, "topk_group": 3, "routed_scaling_factor": 16.0},
        ),
        ("deepseek_v3", "deepseek_v3", "DeepseekV3TopkRouter", {"norm_topk_prob": True}),
        ("mixtral", "minimax", "MiniMaxTopKRouter", {}),
        ("topk", "jamba", "JambaTopKRouter", {}),
        ("sigmoid", "glm4_moe", "Glm4MoeTopkRouter", PLAIN | {"norm_topk_prob": True}),
        ("sigmoid", "nemotron_h", "NemotronHTopkRouter", PLAIN | {"norm_topk_prob": True}),
        ("deepseek_v4", "deepseek_v4", "DeepseekV4TopKRouter", {"routed_scaling_factor": 1.5}),
    ],
)
def test_a_preset_equals_the_router_of_transformers(
    preset: str, family: str, name: str, changed: dict
) -> None:
    theirs = module(family, name, **changed)
    ours = build(preset, TOP)
    x = torch.randn(50, 12)
    ours.score.proj.weight = theirs.weight
    offset = torch.zeros(16)
    if hasattr(theirs, "e_score_correction_bias"):
        offset = theirs.e_score_correction_bias.normal_(0, 0.3)
    _, weights, indices = theirs(x)
    torch.testing.assert_close(
        gates(ours, x, offset=offset), dense(indices, weights), rtol=1e-5, atol=1e-5
    )


def test_gpt_oss_equals_transformers_with_its_biases() -> None:
    theirs = module("gpt_oss", "GptOssTopKRouter")
    ours = build("gpt_oss", SIZES)
    x = torch.randn(50, 12)
    ours.score.proj.weight = theirs.weight
    ours.score.proj.bias = theirs.bias
    _, weights, indices = theirs(x)
    torch.testing.assert_close(gates(ours, x), dense(indices, weights), rtol=1e-5, atol=1e-5)


def test_the_sigmoid_router_equals_minimax_m2_with_a_bias_on_the_choice() -> None:
    theirs = module("minimax_m2", "MiniMaxM2TopKRouter")
    ours = build("sigmoid", SIZES)
    x = torch.randn(50, 12)
    ours.score.proj.weight = theirs.weight
    offset = 0.3 * torch.randn(16)
    _, weights, indices = theirs(x, offset)
    torch.testing.assert_close(
        gates(ours, x, offset=offset), dense(indices, weights), rtol=1e-5, atol=1e-5
    )


def test_longcat_equals_transformers_with_identity_experts_and_a_bias_on_the_choice() -> None:
    theirs = module(
        "longcat_flash", "LongcatFlashTopkRouter", n_routed_experts=12, zero_expert_num=4
    )
    ours = build("topk", SIZES._replace(free=(12, 13, 14, 15)), weigh={"scale": 2.5})
    x = torch.randn(50, 12)
    ours.score.proj.weight = theirs.classifier.weight
    offset = theirs.e_score_correction_bias.normal_(0, 0.05)
    _, weights, indices = theirs(x)
    torch.testing.assert_close(
        gates(ours, x, offset=offset), dense(indices, weights), rtol=1e-5, atol=1e-5
    )


def test_switch_equals_transformers_up_to_its_capacity() -> None:
    theirs = module(
        "switch_transformers",
        "SwitchTransformersTop1Router",
        expert_capacity=50,
        router_bias=False,
        router_jitter_noise=0.0,
        router_ignore_padding_tokens=False,
        router_dtype="float32",
    )
    ours = build("switch", SIZES).eval()
    x = torch.randn(50, 12)
    ours.score.proj.weight = theirs.classifier.weight
    one_hot, probability, _ = theirs(x[None])
    torch.testing.assert_close(gates(ours, x), (one_hot * probability)[0], rtol=1e-5, atol=1e-5)


def test_the_first_layers_of_deepseek_v4_equal_those_of_transformers() -> None:
    theirs = module("deepseek_v4", "DeepseekV4HashRouter", routed_scaling_factor=1.5)
    ours = build("deepseek_v4", TOP._replace(layer=2))
    x = torch.randn(32, 12)
    ours.score.proj.weight = theirs.weight
    theirs.tid2eid.copy_(ours.score.table)
    _, weights, indices = theirs(x, torch.arange(32))
    torch.testing.assert_close(gates(ours, x), dense(indices, weights), rtol=1e-5, atol=1e-5)


def test_zaya_equals_transformers_over_two_layers() -> None:
    """Theirs has one more class, the skip expert:
    ours gets 16 experts, the last of which returns 0.
    """
    state = below = None
    for layer in range(2):
        theirs = module("zaya", "ZayaRouter", layer, num_experts=15, num_experts_per_tok=1)
        ours = build("zaya", SIZES._replace(layer=layer, null=(15,)), score={"state_dim": 6})
        score = ours.score
        mlp = theirs.router_mlp
        x = torch.randn(50, 12)
        score.proj = theirs.down_proj
        score.head = mlp.out_proj
        score.norm.weight = mlp.norm.weight
        score.hidden[0], score.hidden[2] = mlp.fc1, mlp.fc2
        if layer:
            score.gamma = theirs.router_states_scale
        logits, probability, index, below = theirs(x[None], below)
        routing = ours(
            x,
            Context(
                torch.ones(1, 50, dtype=torch.bool), state=state, offset=theirs.balancing_biases
            ),
        )
        state = routing.state
        torch.testing.assert_close(routing.logits, logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state, below[0], rtol=1e-5, atol=1e-5)
        skipped = routing.expert == 15
        torch.testing.assert_close(routing.expert.masked_fill(skipped, 0), index.flatten())
        torch.testing.assert_close(routing.gate, probability.flatten(), rtol=1e-5, atol=1e-5)
