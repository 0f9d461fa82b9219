"""The toy experiments build and keep the invariants of their families."""

import pytest

from app.config.compose import CONF, composed
from app.cost.budget import Budget, on_meta
from app.model.transformer import Transformer
from app.pages.cells import CELLS, NOT_REPRODUCED
from tests.support.methods import METHODS

FOLDER = CONF / "experiment"
TOYS = sorted(path.stem for path in (FOLDER / "toy").glob("*.yaml"))
built: dict[str, Transformer] = {}


def toy(name: str) -> Transformer:
    if name not in built:
        built[name] = on_meta(composed([f"experiment=toy/{name}"]))
    return built[name]


def budget(name: str) -> Budget:
    return Budget.of(toy(name), seq_len=256)


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_small_enough_to_train_in_minutes(name):
    assert budget(name).total_params < 15e6 and budget(name).flops_per_token_train < 60e6


def test_deepseekmoes_toys_have_sixteen_ffns_and_no_dense_layer():
    one = budget("dense").ffn_params
    for name, active in (
        ("deepseekmoe", 2),
        ("gshard", 2),
        ("switch", 1),
        ("hash", 1),
        ("dense_x16", 16),
    ):
        assert (budget(name).ffn_params, budget(name).active_ffn_params) == (16 * one, active * one)
    assert len(toy("deepseekmoe").routers()) == toy("deepseekmoe").config.num_layers
    assert (toy("deepseekmoe").num_experts, toy("deepseekmoe").routers()[0].top_k) == (63, 7)


def test_the_toys_of_one_paper_differ_in_their_router_only():
    assert budget("rmoe").ffn_params == budget("smoe").ffn_params
    assert toy("rmoe").shared_score is not None and toy("smoe").shared_score is None


@pytest.mark.parametrize(
    ("name", "experts", "k"),
    [("mixtral", 8, 2), ("olmoe", 64, 8), ("qwen3", 128, 8), ("grove", 128, 8)],
)
def test_a_toy_has_its_familys_number_of_experts(name, experts, k):
    assert (toy(name).num_experts, toy(name).routers()[0].top_k) == (experts, k)


def test_deepseek_v3s_toy_has_a_dense_layer_at_the_bottom():
    assert len(toy("deepseek_v3").routers()) == toy("deepseek_v3").config.num_layers - 1


def test_every_paper_experiment_is_built_by_some_test():
    # built by tests of their own
    without_cell = {"rmoe_wikitext103", "rmoe_0_91b", "deepseek_v3", *METHODS}
    tested = {cell.experiment for cell in CELLS + NOT_REPRODUCED} | without_cell
    assert {path.stem for path in (FOLDER / "paper").glob("*.yaml")} <= tested


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_says_in_its_second_line_what_it_is(path):
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_" and second.startswith("# ")
