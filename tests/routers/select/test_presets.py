"""Every `router=NAME`: it composes, cites its paper, trains, and is more than a copy of another."""

import re
from itertools import combinations

import pytest
import torch
from omegaconf import OmegaConf

from routers.contract import Context, Sizes
from tests.routers.select.presets import CONF, NAMES, build

SIZES = Sizes(dim=8, num_experts=16, top_k=2, num_layers=2, vocab_size=32)  # those of the default layout
NEEDED = """topk switch gshard noisy_topk mixtral olmoe deepseek_v1 deepseek_v2 deepseek_v3 deepseek_v4 xmoe cosine
smoe_mlp gru zaya moepp hyper random hash base_layer sinkhorn expert_choice expert_threshold top_p relu moge quantile
seq_top_k grin"""


def test_all_presets_exist() -> None:
    assert set(NEEDED.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_routes_and_its_router_learns(name: str) -> None:
    torch.manual_seed(0)
    layers = [build(name, SIZES._replace(layer=i)) for i in range(2)]
    shared, state = layers[0].score.shared(), None
    valid = torch.ones(2, 8, dtype=torch.bool)
    x, loss = torch.randn(16, 8), torch.zeros(())
    for router in layers:
        routing = router(x, Context(valid, torch.arange(16), state, shared=shared, seed=1))
        assert routing.kept.any() and routing.gate.isfinite().all()
        loss, state = loss + (routing.gate * torch.randn_like(routing.gate)).sum(), routing.state
    parameters = [p for module in (*layers, shared) if module for p in module.parameters()]
    assert bool(parameters) == (name not in ("hash", "random"))
    if parameters:
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in parameters)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_preset_cites_its_paper(name: str) -> None:
    first = (CONF / "router" / f"{name}.yaml").read_text().splitlines()[0]
    assert re.match(r"# .*(arXiv \d{4}\.\d{5}|kexue)", first)


def test_presets_with_several_values_of_their_own_share_at_most_half_of_them() -> None:
    own = {name: OmegaConf.load(CONF / "router" / f"{name}.yaml") for name in NAMES}
    values = {
        name: {(kind, *knob) for kind, knobs in preset.items() if kind != "defaults" for knob in knobs.items()}
        for name, preset in own.items()
    }
    for one, two in combinations([v for v in values.values() if len(v) > 1], 2):
        assert len(one & two) <= min(len(one), len(two)) / 2
