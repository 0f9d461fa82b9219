"""Which parameters decay, at which rate each learns, and what the rate is at each step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from app.config.build import build_module
from app.registry import make, names
from app.training.module import LanguageModel

Compose = Callable[..., dict[str, Any]]
MODELS = [
    *([f"experts={name}"] for name in names("experts") if name != "lora_skills"),
    ["experts=lora_skills", "experts.skills=[a,b]", "router=context"],
    ["experts=coarse", "experts/activation=clamped_swiglu", "experts.activation.bias=true"],
    ["experts=coarse", "model.qkv_bias=true", "model.qk_norm=head", "model.tie_embeddings=true"],
    *(
        [f"router={name}", "experts=coarse"]
        for name in ("gru", "zaya", "xmoe", "hyper", "gpt_oss", "noisy_topk")
    ),
]


def module_of(config: dict[str, Any]) -> LanguageModel:
    return build_module(config, 257, ["text"], 2)


def is_vector(model: nn.Module, name: str) -> bool:
    """Return whether a parameter is a norm weight, a bias or another vector,
    single or stacked by expert.
    """
    owner, _, own = name.rpartition(".")
    stacked = own in ("b_in", "b_out", "constant")
    return (
        isinstance(model.get_submodule(owner), nn.RMSNorm)
        or stacked
        or model.get_parameter(name).dim() < 2
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_matrices_decay_and_norms_biases_and_other_vectors_do_not(
    compose: Compose, optimizer: str, overrides: list[str]
) -> None:
    module = module_of(compose(f"optimizer={optimizer}", "optimizer.weight_decay=0.3", *overrides))
    (made,), _ = module.configure_optimizers()
    groups = [(group, parameter) for group in made.param_groups for parameter in group["params"]]
    decay = {parameter: group["weight_decay"] for group, parameter in groups}
    assert len(groups) == len(decay), "no parameter is in two groups"
    learned = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    assert decay.keys() == {*learned.values()}
    for name, parameter in learned.items():
        assert decay[parameter] == (0 if is_vector(module.model, name) else 0.3), name


def test_a_step_without_gradient_shrinks_matrices_and_leaves_vectors_as_they_are(
    compose: Compose,
) -> None:
    module = module_of(
        compose("experts=coarse", "model.qkv_bias=true", "optimizer=adamw", "optimizer.lr=0.1")
    )
    (made,), _ = module.configure_optimizers()
    before = {}
    for name, parameter in module.model.named_parameters():
        nn.init.ones_(parameter)
        before[name], parameter.grad = parameter.detach().clone(), torch.zeros_like(parameter)
    for group in made.param_groups:
        group["lr"] = 0.1
    made.step()
    for name, parameter in module.model.named_parameters():
        factor = 1.0 if is_vector(module.model, name) else 1 - 0.1 * 0.1
        torch.testing.assert_close(parameter.detach(), factor * before[name], msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_routers_learn_at_their_own_rate_in_every_layer(compose: Compose, optimizer: str) -> None:
    parts = (
        "router=gru",
        "experts=coarse",
        "optimizer.router_lr_factor=0.25",
        "optimizer.lr=0.4",
        "model.num_layers=3",
    )
    module = module_of(compose(f"optimizer={optimizer}", *parts))
    (made,), _ = module.configure_optimizers()
    rates = {
        parameter: group["initial_lr"]
        for group in made.param_groups
        for parameter in group["params"]
    }
    for name, parameter in module.model.named_parameters():
        of_router = ".router." in name or name.startswith("shared_score.")
        assert rates[parameter] == (0.1 if of_router else 0.4), name


def cosine(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    angle = math.pi * min(1, (step - warmup) / (total - warmup))
    return 0.1 + 0.9 * (1 + math.cos(angle)) / 2


def multi_step(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if step < 0.8 * total else 0.316 if step < 0.9 * total else 0.316**2


SCHEDULES = {
    "cosine": (cosine, {"final": 0.1}),
    "multi_step": (multi_step, {"milestones": [0.8, 0.9], "factor": 0.316}),
}


@pytest.mark.parametrize("name", names("schedule"))
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_a_schedule_rises_from_the_first_step_and_then_falls_by_its_formula(
    name: str, warmup: int
) -> None:
    formula, knobs = SCHEDULES[name]
    schedule = make(
        "schedule",
        {"name": name, "warmup_steps": warmup, "total_steps": 20, **knobs},
        key="schedule",
    )
    values = [schedule(step) for step in range(25)]
    assert values == pytest.approx([formula(step, warmup, 20) for step in range(25)])
    assert values[0] == (1 / warmup if warmup else 1), "no step is made at rate 0"
    assert max(values) == 1
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


@pytest.mark.parametrize("name", names("schedule"))
def test_every_group_has_the_rate_of_the_schedule_at_every_step(
    compose: Compose, name: str
) -> None:
    steps = ("schedule.warmup_steps=2", "schedule.total_steps=6")
    module = module_of(
        compose(f"schedule={name}", *steps, "optimizer.lr=0.5", "optimizer.router_lr_factor=0.5")
    )
    (made,), (scheduler,) = module.configure_optimizers()
    for step in range(6):
        for group in made.param_groups:
            peak = 0.25 if group["of_router"] else 0.5
            assert group["lr"] == pytest.approx(peak * module.schedule(step))
        made.step()
        scheduler.step()
