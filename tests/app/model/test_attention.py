"""Attention with normed queries and keys against transformers, and its mask."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.attention.flex_attention import flex_attention

from app.model.attention import Attention, Positions, rotary
from app.model.config import ModelConfig
from app.model.documents import attend, block_mask, dense_mask
from routers.contract import Context

D = 24
HEADS = 4
GROUPS = 2
S = 7
SMALL = {"dim": D, "num_heads": HEADS, "num_kv_heads": GROUPS, "num_layers": 1, "hidden_dim": 8}


def config(**changed: Any) -> ModelConfig:
    values = OmegaConf.to_container(OmegaConf.load("conf/model/tiny.yaml"))
    return ModelConfig(**{**values, **SMALL, **changed})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("qk_norm", "family", "prefix"),
    [("none", "olmo", "Olmo"), ("all", "olmoe", "Olmoe"), ("head", "qwen3_moe", "Qwen3Moe")],
)
def test_it_equals_transformers(qk_norm: str, family: str, prefix: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    sizes = {
        "hidden_size": D,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "rms_norm_eps": 1e-6,
    }
    settings = getattr(transformers, f"{prefix}Config")(
        **sizes, head_dim=D // HEADS, max_position_embeddings=32
    )
    settings.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    settings._attn_implementation = "eager"
    theirs = getattr(modeling, f"{prefix}Attention")(settings, 0).eval()
    made = config(qk_norm=qk_norm, norm_eps=1e-6)
    ours = Attention(made)
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0, 0.4)
    with torch.no_grad():
        ours.qkv.weight.copy_(
            torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight])
        )
        ours.out.weight.copy_(theirs.o_proj.weight)
        if qk_norm != "none":
            ours.query_norm.weight.copy_(theirs.q_norm.weight)
            ours.key_norm.weight.copy_(theirs.k_norm.weight)
    x = torch.randn(2, S, D)
    cos, sin = rotary(S, D // HEADS, 1e4, x.device)
    mask = torch.full((S, S), -torch.inf).triu(1)[None, None]
    y = ours(x, Positions(Context(torch.ones(2, S, dtype=torch.bool)), None, cos, sin))
    turned = getattr(modeling, f"{prefix}RotaryEmbedding")(settings)(x, torch.arange(S)[None])
    expected = theirs(x, turned, mask)[0]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_a_position_sees_its_own_document_up_to_itself() -> None:
    mask = dense_mask(torch.tensor([[0, 0, 1, 1]]))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


@pytest.mark.parametrize("length", [128, 300])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_by_blocks_equals_attention_by_a_mask(
    length: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention has no backward pass on a CPU; `tests/test_gpu.py` has that on a GPU."""
    monkeypatch.setattr("app.model.documents._compiled", lambda: flex_attention)
    torch.manual_seed(0)
    document = torch.stack(
        [torch.arange(length) // 37, torch.randint(0, 3, (length,)), torch.zeros(length).long()]
    )
    query, key, value = (torch.randn(3, heads, length, 16) for heads in (2, groups, groups))
    expected = attend(query, key, value, dense_mask(document))
    torch.testing.assert_close(
        attend(query, key, value, block_mask(document)), expected, rtol=1e-5, atol=1e-5
    )


def test_blocks_without_a_document_in_common_are_left_out() -> None:
    blocks = block_mask(torch.arange(512)[None] // 128).to_dense()[0, 0]
    assert blocks.tolist() == torch.eye(4).tolist()
