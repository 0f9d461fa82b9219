"""A model that is built without its matrices and filled when it is split is the one that is built
whole, bit for bit, and no process holds the whole of it on the way.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from app.config.build import build_module
from app.cost.budget import Budget
from app.model.assemble import build_model
from app.model.transformer import Transformer
from app.training.checkpoints import read_checkpoint
from app.training.module import LanguageModel
from app.training.sharding import full_tensor
from app.training.unfilled import unfilled
from tests.conftest import ROOT
from tests.support.peaks import peaks
from tests.support.ranks import each
from tests.support.sharded import bare_trainer

CONF = ROOT / "conf"
VOCAB = 64
PARTS = [
    *(f"router={path.stem}" for path in sorted((CONF / "router").glob("*.yaml"))),
    *(f"experts={path.stem}" for path in sorted((CONF / "experts").glob("*.yaml"))),
    "model.tie_embeddings=true",
    "experts/activation=clamped_swiglu experts.activation.bias=true",
]


@pytest.mark.parametrize("parts", PARTS)
def test_every_part_is_drawn_as_in_a_whole_model(
    compose: Callable[..., dict[str, Any]], parts: str
) -> None:
    build = partial(build_model, compose(*parts.split(), "allow_non_causal=true"), VOCAB)
    torch.manual_seed(3)
    whole = build()
    behind = torch.get_rng_state()
    torch.manual_seed(3)
    bare, draws = unfilled(build)
    assert torch.equal(torch.get_rng_state(), behind)
    assert {p for p in bare.parameters() if p.is_meta} == {*bare.matrices()}
    assert not any(buffer.is_meta for buffer in bare.buffers())
    for name, weights in whole.named_parameters(remove_duplicate=False):
        here = bare.get_parameter(name)
        assert torch.equal(draws[name].again(here.shape) if here.is_meta else here, weights), name


class Twice(nn.Module):
    """Has a part that begins as its matrix does."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ffn = ffn
        self.own = nn.Linear(4, 4)
        self.scale = nn.Parameter(self.own.weight.detach()[0].clone())


def test_a_model_that_needs_the_numbers_of_its_matrices_is_built_whole(
    compose: Callable[..., dict[str, Any]],
) -> None:
    def build() -> Transformer:
        model = build_model(compose(), VOCAB)
        model.blocks[0].ffn = Twice(model.blocks[0].ffn)
        return model

    torch.manual_seed(3)
    whole = build()
    torch.manual_seed(3)
    model, draws = unfilled(build)
    assert draws == {}
    for name, weights in whole.named_parameters():
        assert torch.equal(model.get_parameter(name), weights), name


@pytest.mark.parametrize(
    ("ranks", "strategy", "ep_size"), [(2, "fsdp", 1), (4, "fsdp", 1), (4, "ep", 2)]
)
def test_ranks_fill_their_parts(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, ranks: int, strategy: str, ep_size: int
) -> None:
    parts = (
        "model.tie_embeddings=true",
        "experts.num_experts=7",
        "router=gru",
        "balance=none",
        f"trainer={strategy}",
    )
    config = compose(*parts, f"trainer.ep_size={ep_size}", "data.micro_batch_size=1")
    lightning.seed_everything(5, verbose=False)
    whole = dict(build_module(config, VOCAB, ["text"], 1).named_parameters())

    def begun(rank: int) -> dict[str, Any]:
        lightning.seed_everything(5, verbose=False)
        module = build_module(config, VOCAB, ["text"], 1, whole=False)
        configured(module, config, ranks)
        assert module.model.head.weight is module.model.embedding.weight
        with torch.no_grad():
            module.model.norm.weight.add_(1)
            module.model.embedding.weight.add_(1)
        # as before validation alone: what was learned stays
        module.configure_model()
        return {name: full_tensor(weights.detach()) for name, weights in module.named_parameters()}

    for weights in each(begun, ranks, tmp_path):
        assert weights.keys() == whole.keys()
        for name, value in weights.items():
            learned = name in ("model.norm.weight", "model.embedding.weight")
            assert torch.equal(value, whole[name] + learned), name


def test_a_run_builds_nothing_whole(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare: list[bool] = []
    configure = LanguageModel.configure_model
    monkeypatch.setattr(
        LanguageModel, "configure_model", lambda m: bare.append(is_bare(m.model)) or configure(m)
    )
    train("trainer=fsdp", "trainer.devices=1", name="first")
    train("trainer=fsdp", "trainer.devices=1", "trainer.max_steps=3", "resume=true", name="first")
    train(
        "trainer=fsdp", "trainer.devices=1", "init=run", "init.checkpoint=runs/first", name="second"
    )
    train("init=run", "init.checkpoint=runs/first", name="third")
    assert bare == [True, True, True, False]
    second, third = (
        read_checkpoint(tmp_path / f"runs/{name}/checkpoints/step_2.ckpt")
        for name in ("second", "third")
    )
    for name, weights in third["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weights, rtol=0, atol=1e-5)


def test_dense_weights_are_made_to_experts_before_a_model_is_split(
    train: Callable[..., Path], tmp_path: Path
) -> None:
    train("experts=dense", "balance=none", name="dense")
    start = (
        "init=upcycle",
        "init.checkpoint=runs/dense/checkpoints/step_2.ckpt",
        "experts=coarse",
        "trainer.max_steps=1",
    )
    train(*start, name="one")
    train(*start, "trainer=fsdp", "trainer.devices=1", name="split")
    one, split = (
        read_checkpoint(tmp_path / f"runs/{name}/checkpoints/step_1.ckpt")
        for name in ("one", "split")
    )
    for name, weights in one["state_dict"].items():
        torch.testing.assert_close(split["state_dict"][name], weights, rtol=0, atol=1e-5)


def is_bare(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def configured(module: LanguageModel, config: dict[str, Any], ranks: int) -> None:
    """Splits a module as a run does before its first step."""
    trainer = bare_trainer(config, ranks, 1)
    trainer.strategy.connect(module)
    trainer.strategy._process_group_backend = "gloo"
    trainer.strategy.setup_environment()
    module.trainer = trainer
    module.configure_model()


@pytest.mark.nightly
def test_no_rank_holds_the_whole(compose: Callable[..., dict[str, Any]]) -> None:
    parts = (
        "model.dim=512",
        "model.num_layers=8",
        "experts.num_experts=64",
        "trainer=fsdp",
        "trainer.devices=4",
    )
    config = compose(*parts)
    size = 4 * Budget.of(build_module(config, VOCAB, ["text"], 1).model, 32).total_params
    for seen in peaks(config, 4, steps=1):
        assert seen["building"] < 0.6 * size
