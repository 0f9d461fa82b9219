"""The numbers that RMoE, Dynamic MoE, Mixtral, OLMoE and Qwen3 print,
from the experiments' YAML alone.
"""

import pytest

from app.pages.cells import NOT_REPRODUCED, OTHERS, counted

MISSED = [cell for cell in NOT_REPRODUCED if not cell.experiment.startswith("deepseek")]
IDS = {"ids": lambda cell: f"{cell.experiment}-{cell.quantity}-{cell.printed}".replace(" ", "_")}


@pytest.mark.parametrize("cell", OTHERS, **IDS)
def test_a_printed_cell_is_reproduced(cell):
    assert cell.reproduced, f"{cell.value:.6g} is not {cell.printed}"


@pytest.mark.parametrize("cell", MISSED, **IDS)
def test_a_cell_that_does_not_come_out_says_why(cell):
    assert cell.why_not
    assert not cell.reproduced, "reproduced: move it to OTHERS"


def test_the_router_of_rmoe_has_exactly_the_parameters_of_its_table():
    layers = 8
    dim = 352
    state = 128
    experts = 16
    gru = 6 * state**2 + 6 * state
    assert layers * dim * state + gru + layers * state * experts == 475_904
    assert counted("rmoe_enwik8_medium")["real"].router_params == 475_904


@pytest.mark.parametrize("name", ["rmoe_wikitext103", "rmoe_0_91b"])
def test_experiments_without_a_cell_build_too(name):
    assert counted(name)["real"].expert_params > 0
