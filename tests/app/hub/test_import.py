"""A model of transformers as a model of ours:
the same logits, all values back again, and mistakes in one line.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from app.hub.read import config_of, model_of
from app.hub.weight_files import tensors_of
from app.hub.weights import read_from
from app.registry import UserError
from tests.support.hub_models import CASES, DOUBLED, VOCAB, written
from tests.support.hub_models import config_of as config_by
from tests.support.hub_models import model_of as ours_of

transformers = pytest.importorskip("transformers", minversion="5.0")
TYPED = ("tokenizer=bytes",)


def read(folder: Path) -> tuple[Any, Any]:
    architecture, config = config_of(folder, TYPED)
    return architecture, model_of(folder, architecture, config, VOCAB, tensors_of(folder))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_and_what_transformers_saves_comes_in_with_the_same_logits_and_bits(
    case: str, tmp_path: Path
) -> None:
    ours = ours_of(config_by(*CASES[case]))
    one = tmp_path / "one"
    two = tmp_path / "two"
    written(one, config_by(*CASES[case]), ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in theirs.parameters():  # other weights than ours
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(two)

    architecture, back = read(two)
    tokens = torch.randint(VOCAB, (2, 17), generator=generator)
    torch.testing.assert_close(back.logits(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    again = read_from(back, architecture)
    saved = tensors_of(two)
    assert saved.keys() - again.keys() == set()
    for name, tensor in saved.items():
        if name.endswith("shared_expert_gate.weight") and not hasattr(
            back.blocks[-1].ffn.experts, "common_gate"
        ):
            # of a shared expert of width 0
            continue
        assert torch.equal(again[name].view(tensor.shape), tensor), name

    _, same = read(one)  # ours, out and in
    torch.testing.assert_close(same.logits(tokens), ours.logits(tokens), atol=1e-6, rtol=1e-6)
    mine = {
        name: tensor
        for name, tensor in ours.state_dict().items()
        if not name.startswith("balancer")
    }
    assert mine.keys() == {name for name in same.state_dict() if not name.startswith("balancer")}
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in mine.items())


@torch.no_grad()
@pytest.mark.parametrize("case", DOUBLED)
def test_a_shared_expert_comes_back_behind_a_gate_that_gives_a_half(
    case: str, tmp_path: Path
) -> None:
    ours = ours_of(config_by(*DOUBLED[case]))
    written(tmp_path, config_by(*DOUBLED[case]), ours)
    architecture, config = config_of(tmp_path, TYPED)
    assert config["experts"]["name"] == "shared_gated"
    back = model_of(tmp_path, architecture, config, VOCAB, tensors_of(tmp_path))
    tokens = torch.arange(20).view(2, 10)
    torch.testing.assert_close(back.logits(tokens), ours.logits(tokens), atol=1e-6, rtol=1e-6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = config_by(*CASES["mixtral"])
    written(tmp_path / "theirs", config, ours_of(config))
    return tmp_path / "theirs"


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def left_out(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "model.safetensors: is missing or damaged"),
        (
            pickled,
            "pytorch_model.bin is a pickle, which may be a program; only safetensors are read",
        ),
        (left_out, "model.norm.weight is missing; model.extra.weight is unknown"),
        (
            lambda folder: changed(folder, intermediate_size=20),
            "do not fit its config.json: .* must be",
        ),
        (lambda folder: changed(folder, num_local_experts=7), "experts.6.w1.weight is missing"),
        (lambda folder: changed(folder, num_hidden_layers=2), "model.layers.2.* is unknown"),
        (
            lambda folder: changed(folder, model_type="jamba"),
            "model_type=jamba: cannot be imported .one of: deepseek,",
        ),
        (
            lambda folder: changed(folder, model_type="no_such"),
            "model_type=no_such: cannot be imported",
        ),
        (
            lambda folder: changed(folder, hidden_act="gelu"),
            "hidden_act=gelu: .* only hidden_act=silu can be",
        ),
        (lambda folder: changed(folder, sliding_window=8), "sliding_window=8: cannot be imported"),
        (
            lambda folder: changed(
                folder, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
            ),
            "rope_parameters.rope_type=linear: cannot be imported",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is damaged"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    ],
)
def test_what_is_damaged_or_something_else_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=said) as refusal:
        read(folder)
    assert "\n" not in str(refusal.value)


def test_what_the_folder_fixes_cannot_be_typed(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.dim=64: is fixed by"):
        config_of(folder, [*TYPED, "model.dim=64"])
    with pytest.raises(UserError, match=r"router=gru: is fixed by"):
        config_of(folder, [*TYPED, "router=gru"])
