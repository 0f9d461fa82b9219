"""The experiments of single methods: each composes to its method, whole, and builds."""

import pytest

from app.config.compose import CONF, composed
from app.cost.budget import Budget, on_meta
from app.model.transformer import Transformer
from tests.support.methods import METHODS

# billions of parameters in all, and active, as released or printed
PRINTED = {
    "grin": (42, 6.6),
    "gpt_oss": (117, 5.1),
    "kimi_k2": (1040, None),
    "moge": (72, 16),
}
built: dict[str, Transformer] = {}


def build(name: str) -> Transformer:
    if name not in built:
        built[name] = on_meta(composed([f"experiment=paper/{name}"]))
    return built[name]


@pytest.mark.parametrize("name", METHODS)
def test_an_experiment_is_its_method(name):
    config = composed([f"experiment=paper/{name}"])
    router = config["router"]
    balance = list(config["balance"])
    parts = [router[kind]["name"] for kind in ("score", "select", "weigh", "drop")]
    assert (*parts, balance, config["experts"]["name"]) == METHODS[name]
    assert build(name).routers()


@pytest.mark.parametrize("name", METHODS)
def test_what_could_not_be_read_is_said(name):
    third = (CONF / "experiment" / "paper" / f"{name}.yaml").read_text().splitlines()[2]
    assert (
        "could not be read" in third
        or "not published" in third
        or ("released config") in third
        or "not ours" in third
    )


@pytest.mark.parametrize("name", PRINTED)
def test_the_sizes_add_up_to_what_is_printed(name):
    total, active = PRINTED[name]
    budget = Budget.of(build(name), 4096)
    # its MLA is smaller than our attention
    attention = 0.12 if name == "kimi_k2" else 0.02
    assert budget.total_params == pytest.approx(total * 1e9, rel=attention)
    if active is not None:
        assert budget.active_params == pytest.approx(active * 1e9, rel=0.15)


PAPERS = [
    path
    for folder in ("paper", "toy")
    for path in sorted((CONF / "experiment" / folder).glob("*.yaml"))
]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_experiment_but_a_size_of_races_trains_with_the_optimizer_of_the_papers(path):
    config = composed([f"experiment={path.parent.name}/{path.stem}"])
    assert config["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert config["optimizer"]["router_lr_factor"] == 1.0
