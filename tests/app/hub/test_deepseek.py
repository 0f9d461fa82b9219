"""DeepSeekMoE comes in, of whose code transformers has none:
against what arXiv 2401.06066, section 3, says.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import silu

from app.hub.read import config_of, model_of
from app.hub.weight_files import tensors_of
from app.registry import UserError
from tests.conftest import ROOT
from tests.support.shell import SMALL, command, environment, write_text

pytestmark = pytest.mark.nightly

pytest.importorskip("transformers", minversion="5.0")
VOCAB = 257
DIM = 16
HEADS = 2
LAYERS = 3
EXPERTS = 5
TOP_K = 2
SHARED = 2
WIDTH = 8
DENSE = 24
CONFIG = {
    "model_type": "deepseek",
    "architectures": ["DeepseekForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "intermediate_size": DENSE,
    "moe_intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "n_shared_experts": SHARED,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "hidden_act": "silu",
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
}


def weights() -> dict[str, Tensor]:
    """By the names of the released checkpoint."""
    shapes = {"model.embed_tokens": (VOCAB, DIM), "model.norm": (DIM,), "lm_head": (VOCAB, DIM)}
    for layer in range(LAYERS):
        own = {"input_layernorm": (DIM,), "post_attention_layernorm": (DIM,)}
        own |= {f"self_attn.{name}_proj": (DIM, DIM) for name in "qkvo"}
        networks = {"mlp": DENSE}
        if layer:
            networks = {f"mlp.experts.{e}": WIDTH for e in range(EXPERTS)} | {
                "mlp.shared_experts": SHARED * WIDTH
            }
            own["mlp.gate"] = (EXPERTS, DIM)
        for name, width in networks.items():
            own |= {f"{name}.{part}_proj": (width, DIM) for part in ("gate", "up")}
            own[f"{name}.down_proj"] = (DIM, width)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {f"{name}.weight": 1 + 0.1 * w if w.dim() == 1 else 0.4 * w for name, w in drawn.items()}


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Rotary positions of (S, H): pairs half a head apart."""
    half = x.size(-1) // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
    left = x[:, :half]
    right = x[:, half:]
    return torch.cat(
        [left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1
    )


def defined(w: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """Logits (S, V), token by token and expert by expert."""
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):

        def of(name: str, layer: int = layer) -> Tensor:
            return w[f"model.layers.{layer}.{name}.weight"]

        def network(name: str, u: Tensor) -> Tensor:
            return of(f"{name}.down_proj") @ (
                silu(of(f"{name}.gate_proj") @ u) * (of(f"{name}.up_proj") @ u)
            )

        h = normed(x, of("input_layernorm"))
        q, k, v = ((h @ of(f"self_attn.{name}_proj").T).split(DIM // HEADS, -1) for name in "qkv")
        past = torch.ones(len(tokens), len(tokens)).tril().log()
        heads = [
            (turned(a) @ turned(b).T * (DIM // HEADS) ** -0.5 + past).softmax(-1) @ c
            for a, b, c in zip(q, k, v, strict=True)
        ]
        x = x + torch.cat(heads, -1) @ of("self_attn.o_proj").T
        h = normed(x, of("post_attention_layernorm"))
        outputs = []
        for u in h:
            if layer == 0:
                outputs.append(network("mlp", u))
                continue
            gate = (of("mlp.gate") @ u).softmax(-1)
            chosen = gate.sort(descending=True).indices[:TOP_K].tolist()
            routed = sum(gate[e] * network(f"mlp.experts.{e}", u) for e in chosen)
            outputs.append(network("mlp.shared_experts", u) + routed)
        x = x + torch.stack(outputs)
    return normed(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text(json.dumps(CONFIG))
    safetensors.torch.save_file(weights(), tmp_path / "theirs/model.safetensors")
    return tmp_path / "theirs"


@torch.no_grad()
def test_its_logits_are_those_of_the_paper(folder: Path) -> None:
    architecture, config = config_of(folder, ["tokenizer=bytes"])
    assert config["experts"]["name"] == "deepseek" and config["experts"]["num_shared"] == SHARED
    model = model_of(folder, architecture, config, VOCAB, tensors_of(folder))
    tokens = torch.randint(VOCAB, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    torch.testing.assert_close(
        model.logits(torch.tensor([tokens]))[0], defined(weights(), tokens), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"moe_layer_freq": 2}, "moe_layer_freq=2: cannot be imported"),
        ({"scoring_func": "sigmoid"}, "scoring_func=sigmoid: cannot be imported"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling=.* cannot be imported"),
        ({"n_shared_experts": 3}, "do not fit its config.json: .*shared_experts"),
        ({"hidden_size": None}, "config.json: says nothing of hidden_size"),
    ],
)
def test_what_computes_something_else_is_refused(
    folder: Path, values: dict[str, Any], said: str
) -> None:
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in (CONFIG | values).items() if v is not None})
    )
    with pytest.raises(UserError, match=said):
        architecture, config = config_of(folder, ["tokenizer=bytes"])
        model_of(folder, architecture, config, VOCAB, tensors_of(folder))


def test_its_run_says_that_nobody_compared_it_and_trains_on(folder: Path) -> None:
    place = folder.parent
    write_text(place)
    words = f"{SMALL} run=one".split()
    words = [
        word
        for word in words
        if not word.startswith(("model", "data.seq_len", "router", "experts"))
    ]
    env = environment() | {"PYTHONPATH": str(ROOT)}
    line = [*command("-m app.import_hf theirs"), *words]
    made = subprocess.run(line, cwd=place, env=env, text=True, capture_output=True)
    assert (
        made.returncode == 0
        and ("logits not compared: transformers has no code for it") in made.stdout
    ), made.stderr
    more = [*command("train run=one resume=true trainer.max_steps=2")]
    assert subprocess.run(more, cwd=place, env=env, capture_output=True).returncode == 0
