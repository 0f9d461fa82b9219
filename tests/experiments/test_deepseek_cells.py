"""The numbers that DeepSeekMoE's papers print, from the experiments' YAML alone."""

from math import comb

import pytest

from app.pages.cells import DEEPSEEK, NOT_REPRODUCED, counted

MISSED = [cell for cell in NOT_REPRODUCED if cell.experiment.startswith("deepseek")]
IDS = {"ids": lambda cell: f"{cell.experiment}-{cell.quantity}-{cell.convention}".replace(" ", "_")}


@pytest.mark.parametrize("cell", DEEPSEEK, **IDS)
def test_a_printed_cell_is_reproduced(cell):
    assert cell.reproduced, f"{cell.value:.6g} is not {cell.printed}"


@pytest.mark.parametrize("cell", MISSED, **IDS)
def test_a_cell_that_does_not_come_out_says_why(cell):
    assert cell.why_not
    assert not cell.reproduced, "reproduced: move it to DEEPSEEK"


@pytest.mark.parametrize(
    ("name", "ffns"), [("", 2), ("_dense", 1), ("_gshard_x1_5", 3), ("_dense_x16", 16)]
)
def test_flops_of_the_2b_scale_agree_with_the_formula_of_its_table(name, ffns):
    layers = 9
    dim = 1280
    length = 2048
    vocab = 8192
    ffn = 3 * dim * (8 * dim / 3)
    products = layers * (4 * dim**2 + ffns * ffn) + vocab * dim
    formula = 6 * length * products + 12 * layers * dim * length**2
    assert counted(f"deepseekmoe_2b{name}")["paper"].flops_per_sequence_train == pytest.approx(
        formula, rel=1e-3
    )


def test_moe_models_of_the_2b_scale_have_16_times_the_dense_ffn_parameters():
    one = counted("deepseekmoe_2b_dense")["real"].ffn_params
    for name in ("", "_hash", "_switch", "_gshard", "_dense_x16"):
        assert counted(f"deepseekmoe_2b{name}")["real"].ffn_params == 16 * one
    for name, times in (("", 2), ("_gshard", 2), ("_switch", 1), ("_hash", 1), ("_dense_x4", 4)):
        assert counted(f"deepseekmoe_2b{name}")["real"].active_ffn_params == times * one


def test_combinations_of_experts():
    assert (comb(16, 2), comb(64, 8)) == (120, 4_426_165_368)


@pytest.mark.parametrize(
    ("name", "layers", "dim", "width", "experts", "active"),
    [
        ("deepseek_v2", 59, 5120, 1536, 160, 6),
        ("deepseek_v2_lite", 26, 2048, 1408, 64, 6),
        ("deepseek_v3", 58, 7168, 2048, 256, 8),
    ],
)
def test_router_and_expert_parameters_of_v2_and_v3_follow_from_their_tables(
    name, layers, dim, width, experts, active
):
    budget = counted(name)["real"]
    assert budget.router_params == layers * dim * experts
    assert budget.expert_params == layers * experts * 3 * dim * width
    assert (
        budget.total_params - budget.active_params == layers * (experts - active) * 3 * dim * width
    )
