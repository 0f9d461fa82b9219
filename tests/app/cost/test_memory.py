"""The planned bytes against what processes need, and against arithmetic on paper."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from app.config.compose import as_dict, composed
from app.cost.budget import budget_of, on_meta
from app.cost.kept import Work
from app.cost.memory import Fit, Memory, Placement, optimizer_states
from tests.conftest import NANO, ROOT
from tests.support.peaks import peaks

S = 32
LEVELS = ("parameter", "layer", "logits")
ONE = Placement()
WIDE = "model.dim=512 model.num_layers=8 experts.num_experts=33 data.seq_len=128"
# of what most of the memory is
SHAPES = {
    "parameters": WIDE,
    "gradients of earlier micro-batches": f"{WIDE} data.micro_batch_size=1",
    "activations": "model.dim=256 model.num_layers=8 data.seq_len=512 data.batch_size=8 "
    "data.micro_batch_size=4",
    "logits": "model.dim=128 model.num_layers=4 model.vocab_size=32768 data.seq_len=256 "
    "data.batch_size=8 "
    "data.micro_batch_size=4",
    "long rows": "model.dim=256 model.num_layers=2 model.vocab_size=8192 data.seq_len=1024 "
    "data.batch_size=8 "
    "data.micro_batch_size=4",
    "recomputed": "model.dim=256 model.num_layers=8 data.seq_len=512 data.batch_size=8 "
    "data.micro_batch_size=4 "
    "model.activation_checkpointing=true",
}
STRATEGIES = {
    "one process": "trainer=cpu",
    "ddp": "trainer=ddp",
    "fsdp": "trainer=fsdp",
    "fsdp, whole gradients": "trainer=fsdp trainer.accumulate=whole",
    "ep": "trainer=ep",
    "adamw": "trainer=fsdp optimizer=adamw",
}


def small(*overrides: str) -> dict[str, Any]:
    words = (
        "model=nano",
        "tokenizer=bytes",
        "model.vocab_size=257",
        "trainer.precision=32-true",
        *overrides,
    )
    return composed(list(words))


@cache
def need(words: str) -> int:
    """Bytes of the process that needs most in a step."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = as_dict(
            hydra_compose(
                "config", [*NANO, "balance=none", "trainer.accelerator=cpu", *words.split()]
            )
        )
    ranks = config["trainer"]["devices"]
    return max(seen["step"] for seen in peaks(config, ranks, steps=3))


def planned(words: str) -> float:
    config = composed([*NANO, "balance=none", "trainer.accelerator=cpu", *words.split()])
    return budget_of(config)[1].at_most


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_processes_need_what_was_planned(strategy: str, shape: str) -> None:
    # what a nano model needs is not its own but the libraries'
    needed = need(f"{strategy} {shape}") - need(strategy)
    assert planned(f"{strategy} {shape}") == pytest.approx(needed, rel=0.15)


def test_bytes_of_a_small_run() -> None:
    model = on_meta(small("experts=coarse"))
    work = Work(S, rows=1, product=2)
    total = sum(p.numel() for p in model.parameters())
    memory = Memory.of(model, work, ONE)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (
        4 * total,
        4 * total,
        8 * total,
    )
    assert memory.gathered == 2 * total  # autocast's copies
    assert Fit.of(model, work) == Fit(one_gpu=True, gpus_fsdp=1, gpus_expert_parallel=1)


@pytest.mark.parametrize("strategy", ["fsdp", "ep"])
def test_what_is_split_is_shared_evenly(strategy: str) -> None:
    model = on_meta(small("experts=coarse", "model.num_layers=8"))
    work = Work(S, rows=1)
    one, four = (
        Memory.of(model, work, Placement(strategy, n, n if strategy == "ep" else 1)) for n in (1, 4)
    )
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(four, name) == getattr(one, name) / 4
    assert (
        four.activations == one.activations and one.gathered == 0 < four.gathered < one.parameters
    )


def test_two_blocks_are_gathered_and_experts_of_other_ranks_are_not() -> None:
    model = on_meta(small("experts=coarse", "model.num_layers=8"))
    block = sum(p.numel() for p in model.blocks[-1].parameters())
    experts = sum(p.numel() for p in model.blocks[-1].ffn.experts.parameters())
    outside = model.embedding.weight.numel() + model.head.weight.numel() + model.norm.weight.numel()
    work = Work(S, rows=1, micro_batches=2)
    fsdp, ep, ep_of_two = (
        Memory.of(model, work, Placement(*at)) for at in (("fsdp", 4), ("ep", 4, 4), ("ep", 4, 2))
    )
    assert fsdp.gathered == 4 * (outside + 2 * block)
    assert ep.gathered == 4 * (outside + 2 * (block - experts))
    assert ep_of_two.gathered == 4 * (outside + 2 * (block - experts / 2))
    assert (
        Memory.of(model, work._replace(product=2), Placement("fsdp", 4)).gathered
        == 4 * outside + 4 * block
    )


def test_gradients_of_earlier_micro_batches_exist_beside_activations() -> None:
    model = on_meta(small("experts=coarse", "model.num_layers=8"))
    at = Placement("fsdp", 2, accumulate="whole")
    one, two = (Memory.of(model, Work(4096, 4, number), at) for number in (1, 2))
    total = sum(p.numel() for p in model.parameters())
    assert (one.gradients, two.gradients) == (2 * total, 4 * total)
    assert two.at_most - one.at_most == two.gradients


def test_checkpointing_keeps_fewer_activations() -> None:
    models = [
        on_meta(small("model.num_layers=8", f"model.activation_checkpointing={on}"))
        for on in ("false", "true")
    ]
    every, few = (Memory.of(model, Work(S, 1), ONE).activations for model in models)
    assert few < every / 3


def test_a_16b_model_needs_several_gpus() -> None:
    model = on_meta(composed(["experiment=paper/deepseekmoe_16b"]))
    fit = Fit.of(model, Work(4096, rows=1, product=2))
    assert not fit.one_gpu
    # 16 bytes * 16.4e9 / 76e9 = 3.4, and what is not split
    assert fit.gpus_fsdp == 4
    # a divisor of 64 experts; no expert is gathered
    assert fit.gpus_expert_parallel == 4


STATES: list[tuple[Callable[..., Any], tuple[int, int]]] = [
    (lambda matrices: torch.optim.AdamW(matrices, lr=0.1), (2, 2)),
    (lambda matrices: torch.optim.SGD(matrices, lr=0.1, momentum=0.9), (1, 1)),
    (lambda matrices: torch.optim.SGD(matrices, lr=0.1), (0, 0)),
]


@pytest.mark.parametrize(("optimizer", "states"), STATES)
def test_an_optimizers_states_are_found_by_trying_it(
    optimizer: Callable[..., Any], states: tuple[int, int]
) -> None:
    assert optimizer_states(optimizer) == states


def test_muon_keeps_less_of_hidden_matrices() -> None:
    model = on_meta(small())
    hidden = {*model.matrices()} & {*model.blocks.parameters()}
    others = [p for p in model.parameters() if p not in hidden]
    memory = budget_of(small("optimizer=muon"))[1]
    assert memory.optimizer == 4 * (
        sum(p.numel() for p in hidden) + 2 * sum(p.numel() for p in others)
    )


def test_a_mixture_of_skills_keeps_a_forward_pass_of_each_where_it_mixes_outputs() -> None:
    words = [["experts=dense", "balance=none"]]
    words += [
        ["experts=lora_skills", "experts.skills=[a,b]", "router=context", f"experts.level={x}"]
        for x in LEVELS
    ]
    models = [on_meta(small(*own)) for own in words]
    dense, parameter, layer, logits = (
        Memory.of(model, Work(S, 1), ONE).activations for model in models
    )
    # bytes of the norm behind the blocks; computed once
    last = 4 * S * 2 * models[0].config.dim
    assert dense < parameter and layer == logits and layer - parameter == 2 * (dense - last)
