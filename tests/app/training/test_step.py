"""What a step draws, sums and tells its controllers:
on two real ranks the same as in one process.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.utils.data import DataLoader

from app.config.build import build_module
from routers.contract import Context
from routers.noise import PARTS
from tests.support.ranks import each
from tests.support.sharded import CLIP, VOCAB, bare_trainer, gradients, ragged_batch, trained

Compose = Callable[..., dict[str, Any]]
CONTROLLERS = ("loss_free", "quantile", "pid", "momentum_bias")


def seen(config: dict[str, Any], rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """State of the balance terms and sums over all ranks after two steps that change no weight."""
    module, total = trained(
        config | {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.0}}, rank, ranks
    )
    return dict(module.model.balancer.state_dict()) | total.take()


@pytest.mark.parametrize(
    "terms", [(name,) for name in CONTROLLERS] + [("threshold",), ("relu_lambda", "loss_free")]
)
def test_two_ranks_tell_controllers_and_metrics_what_one_process_does(
    compose: Compose, tmp_path: Path, terms: tuple[str, ...]
) -> None:
    select = {"threshold": "expert_threshold", "relu_lambda": "positive"}.get(terms[0], "top_k")
    parts = (
        *CLIP,
        f"balance=[{','.join(terms)}]",
        f"router/select={select}",
        "router/weigh=sigmoid",
    )
    parts += ("router.select.warmup_steps=0",) if select == "expert_threshold" else ()
    one = seen(compose(*parts))
    for other in each(lambda rank: seen(compose(*parts, "trainer=ddp"), rank, 2), 2, tmp_path):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    states = [value for name, value in one.items() if name.endswith(("bias", "tau", "coefficient"))]
    assert len(states) == len(terms) and all(value.abs().sum() > 0 for value in states), (
        "every term has moved"
    )


@pytest.mark.parametrize("term", ["aux", "device"])
def test_the_global_scope_has_one_gradient_in_one_process_and_on_two_ranks(
    compose: Compose, tmp_path: Path, term: str
) -> None:
    parts = (*CLIP, f"balance={term}", f"balance.{term}.scope=global", f"balance.{term}.weight=1.0")
    one = gradients(compose(*parts, "data.micro_batch_size=4"))
    two = compose(*parts, "data.micro_batch_size=2", "trainer=ddp")
    micro = compose(*parts, "data.micro_batch_size=2", f"balance.{term}.scope=micro", "trainer=ddp")
    found, other = (
        each(lambda rank, c=c: gradients(c, rank, 2), 2, tmp_path)[0] for c in (two, micro)
    )
    for name, value in one.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7, msg=name)
    assert not torch.allclose(other["norm"], one["norm"], rtol=1e-3), "the scope makes a difference"


def draws(config: dict[str, Any], rank: int = 0, ranks: int = 1) -> list[float]:
    """The first number of the noise that the router draws for every row in two steps."""
    asked: list[float] = []
    made = Context.drawn

    def watched(self: Context, *args: Any) -> Tensor:
        noise = made(self, *args)
        asked.extend(noise[:: self.valid.size(1), 0].tolist())
        return noise

    Context.drawn = watched  # type: ignore[method-assign]
    try:
        trained(config, rank, ranks)
    finally:
        Context.drawn = made  # type: ignore[method-assign]
    return asked


def test_noise_is_another_one_in_every_layer_row_and_step_whoever_draws_it(
    compose: Compose, tmp_path: Path
) -> None:
    parts = (*CLIP, "router=topk", "router/score=jitter", "balance=none")
    one = draws(compose(*parts))
    assert len(one) == len(set(one)) == 2 * 4 * 2  # steps, rows, layers
    assert sorted(draws(compose(*parts, "data.micro_batch_size=2"))) == sorted(one), (
        "micro-batches change nothing"
    )
    two = each(lambda rank: draws(compose(*parts, "trainer=ddp"), rank, 2), 2, tmp_path)
    assert sorted(two[0] + two[1]) == sorted(one), "two ranks draw what one process does"
    assert not set(one) & set(draws(compose(*parts, "seed=1"))), "another seed draws other noise"


def test_noise_is_another_one_in_every_part_of_a_router() -> None:
    context = Context(torch.ones(1, 1, dtype=torch.bool), seed=5)
    numbers = [context.drawn(part, 1).item() for part in PARTS]
    assert len(set(numbers)) == len(PARTS)


def test_the_gradient_of_a_layer_reaches_the_router_of_the_layer_below_through_its_state(
    compose: Compose,
) -> None:
    """RMoE's recurrence over depth: table 5 of the paper finds that
    cutting it is worse than no recurrence.
    """
    module = build_module(compose("router=gru", "balance=none"), VOCAB, ["text"], 4)
    lower, upper = module.model.routers()
    batch = ragged_batch()
    _, routings = module.model(batch["tokens"], batch["targets"], batch["valid"], batch["document"])
    x = routings[1].logits.square().sum()
    (through,) = torch.autograd.grad(x, lower.score.proj.weight, retain_graph=True)
    context = Context(batch["valid"], state=routings[0].state, shared=module.model.shared_score)
    assert context.state is not None and context.state.requires_grad
    inner = torch.randn(batch["tokens"].numel(), module.model.config.dim)
    (only,) = torch.autograd.grad(
        upper.score(inner, context).logits.square().sum(), lower.score.proj.weight
    )
    assert only.abs().sum() > 0 and through.abs().sum() > 0
    cut = context._replace(state=context.state.detach())
    assert not upper.score(inner, cut).logits.requires_grad or torch.autograd.grad(
        upper.score(inner, cut).logits.square().sum(), lower.score.proj.weight, allow_unused=True
    ) == (None,)


def test_the_state_that_the_model_hands_up_carries_a_gradient(compose: Compose) -> None:
    module = build_module(compose("router=gru", "balance=none"), VOCAB, ["text"], 4)
    received: list[Tensor] = []
    upper = module.model.routers()[1]
    upper.register_forward_pre_hook(lambda _, inputs: received.append(inputs[1].state))
    batch = ragged_batch()
    module.model(batch["tokens"], batch["targets"], batch["valid"], batch["document"])
    assert received[0].requires_grad and received[0].grad_fn is not None


def test_clipping_bounds_the_step(compose: Compose) -> None:
    free, clipped = (
        gradients(compose(*CLIP, "balance=none", f"trainer.gradient_clip_val={c}"))
        for c in ("null", 0.01)
    )
    assert free["norm"] > 0.02 and torch.allclose(free["norm"], clipped["norm"]), (
        "the norm is told before clipping"
    )
    step = torch.cat([value.flatten() for name, value in clipped.items() if name != "norm"]).norm()
    assert float(step) == pytest.approx(0.01, rel=1e-3)


def timeouts(config: dict[str, Any], rank: int, ranks: int) -> list[float]:
    """Seconds that each group of several processes waits, after a step."""
    trained(config, rank, ranks, steps=1)
    groups = [group for group in distributed_c10d._world.pg_map if group.size() > 1]
    waits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
    return [wait / timedelta(seconds=1) for wait in waits]


def test_every_group_of_processes_has_the_time_out_of_the_config(
    compose: Compose, tmp_path: Path
) -> None:
    parts = (
        "experts.num_experts=7",
        "trainer=ep",
        "trainer.devices=4",
        "trainer.ep_size=2",
        "trainer.timeout_s=77",
    )
    found = each(
        lambda rank: timeouts(compose(*CLIP, "balance=none", *parts), rank, 4), 4, tmp_path
    )
    assert all(len(waits) == 3 and set(waits) == {77.0} for waits in found), (
        "the whole, the experts', the replicas'"
    )


def rates(config: dict[str, Any]) -> dict[str, float]:
    """How far each parameter moves in one step of Adam:
    by the rate, wherever there is a gradient.
    """
    lightning.seed_everything(0, verbose=False)
    module = build_module(config, VOCAB, ["text"], 4)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    bare_trainer(config, 1, 1).fit(module, DataLoader([ragged_batch()], batch_size=None))
    return {
        name: float((value.detach() - before[name]).abs().max())
        for name, value in module.named_parameters()
    }


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_routers_have_a_learning_rate_of_their_own_and_can_be_frozen(
    compose: Compose, factor: float
) -> None:
    parts = (
        "router=gru",
        f"optimizer.router_lr_factor={factor}",
        "optimizer=adamw",
        "optimizer.weight_decay=0.0",
        "optimizer.lr=0.01",
    )
    moved = rates(compose(*CLIP, *parts, "balance=none"))
    routers = {
        name: rate for name, rate in moved.items() if ".router." in name or "shared_score" in name
    }
    assert len(routers) == 2 * 2 + 4, (
        "projection and head of each layer, and the cell that they share"
    )
    for name, rate in moved.items():
        expected = 0.01 * factor if name in routers else 0.01
        assert rate == pytest.approx(expected, rel=0.05), name


def logged(config: dict[str, Any], rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """What a step logs of its balance terms."""
    lightning.seed_everything(0, verbose=False)
    module = build_module(config, VOCAB, ["text"], config["data"]["micro_batch_size"])
    trainer = bare_trainer(config, ranks, 1)
    batch = {name: value[rank::ranks] for name, value in ragged_batch().items()}
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return {
        name: value
        for name, value in trainer.callback_metrics.items()
        if name.startswith("balance/")
    }


def test_a_balance_term_is_logged_as_the_mean_over_micro_batches_and_ranks(
    compose: Compose, tmp_path: Path
) -> None:
    parts = (*CLIP, "balance=[aux,z_loss]")
    one = logged(compose(*parts))
    lightning.seed_everything(0, verbose=False)
    module = build_module(compose(*parts), VOCAB, ["text"], 1)
    rows = [{name: value[i : i + 1] for name, value in ragged_batch().items()} for i in range(4)]
    terms = [
        module.model.balancer.losses(module._forward_without_hooks(row, 0)[1], None) for row in rows
    ]
    for name in ("aux", "z_loss"):
        mean = torch.stack([each_[name][0].detach() for each_ in terms]).mean()
        torch.testing.assert_close(one[f"balance/{name}"], mean)
        torch.testing.assert_close(one[f"balance/{name}_weighted"], mean * terms[0][name][1])
    for other in each(lambda rank: logged(compose(*parts, "trainer=ddp"), rank, 2), 2, tmp_path):
        torch.testing.assert_close(other, one)
