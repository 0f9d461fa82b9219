"""Every `router=NAME`: it composes, cites its paper, trains, and is more than a copy of another."""

import re
from itertools import combinations

import pytest
import torch

from app.config.build import build_module
from routers.balance.seq_v3 import SeqV3
from routers.contract import Context, Sizes
from routers.drop.capacity import Capacity
from tests.support.presets import CONF, NAMES, build, config, parts

SIZES = Sizes(dim=8, num_experts=16, top_k=2, num_layers=2, vocab_size=32)
NEEDED = """\
topk switch gshard noisy_topk mixtral olmoe deepseek_v1 deepseek_v2 deepseek_v3 deepseek_v4 xmoe
cosine smoe_mlp gru zaya moepp hyper random hash base_layer sinkhorn expert_choice expert_threshold
top_p relu moge quantile seq_top_k grin llama4 sigmoid smoe_dropout oracle"""


def test_all_presets_exist() -> None:
    assert set(NEEDED.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_routes_and_its_router_learns(name: str) -> None:
    torch.manual_seed(0)
    layers = [build(name, SIZES._replace(layer=i)) for i in range(2)]
    shared = layers[0].score.shared()
    state = None
    valid = torch.ones(2, 8, dtype=torch.bool)
    x = torch.randn(16, 8)
    loss = torch.zeros(())
    for router in layers:
        routing = router(
            x,
            Context(
                valid, torch.arange(16), state, shared=shared, seed=1, domain=torch.arange(16) // 8
            ),
        )
        assert routing.kept.any() and routing.gate.isfinite().all()
        loss = loss + (routing.gate * torch.randn_like(routing.gate)).sum()
        state = routing.state
    parameters = [p for module in (*layers, shared) if module for p in module.parameters()]
    assert bool(parameters) == (name not in ("hash", "random", "smoe_dropout", "oracle"))
    if parameters:
        loss.backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in parameters
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_builds_in_the_default_run(name: str) -> None:
    with torch.device("meta"):
        build_module(config(name), 64, ["text"], 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_preset_cites_its_paper(name: str) -> None:
    first = (CONF / "router" / f"{name}.yaml").read_text().splitlines()[0]
    assert re.match(r"# .*(arXiv \d{4}\.\d{5}|kexue|no paper)", first)


def test_presets_that_compose_to_the_same_say_so_in_their_first_line() -> None:
    made = {name: (CONF / "router" / f"{name}.yaml").read_text().splitlines()[0] for name in NAMES}
    same = [(one, two) for one, two in combinations(NAMES, 2) if parts(one) == parts(two)]
    assert {frozenset(pair) for pair in same} == {
        frozenset(p) for p in combinations(("topk", "olmoe", "deepseek_v1"), 2)
    }
    for one, two in same:
        assert (
            f"`{two}`" in made[one]
            or f"`{one}`" in made[two]
            or ("`topk`" in made[one] and "`topk`" in made[two])
        )


@pytest.mark.parametrize(("name", "k"), [("switch", 1), ("gshard", 2), ("topk", 4)])
def test_capacity_and_the_v3_loss_count_the_experts_that_the_preset_selects(
    name: str, k: int
) -> None:
    torch.manual_seed(0)
    sizes = SIZES._replace(top_k=4)
    router = build(name, sizes).eval()
    router.drop = Capacity(sizes, factor=1.25, order="position", exempt=0.0, eval=True)
    routing = router(torch.randn(256, 8), Context(torch.ones(1, 256, dtype=torch.bool)))
    places = -(-1.25 * 256 * k // 16)
    load = torch.bincount(routing.expert, minlength=17)[:16]
    kept = torch.bincount(routing.expert[routing.kept], minlength=17)[:16]
    assert routing.top_k == k and load.max() > places
    assert torch.equal(kept, load.clamp(max=int(places)))
    counted = SeqV3(sizes, weight=1.0).loads(routing)
    torch.testing.assert_close(counted, load[None].float())
