"""The weights of the paper experiments are those that their sources print, in our units."""

import pytest
import torch

from app.config.compose import CONF, composed
from app.pages.weights import WEIGHTS, Weight
from routers.balance.aux import Aux
from tests.support.routings import sizes, uniform

IDS = {"ids": lambda weight: f"{weight.experiment}-{weight.term}"}


@pytest.mark.parametrize("weight", WEIGHTS, **IDS)
def test_an_experiment_has_the_printed_weight_in_our_units(weight):
    assert weight.configured == pytest.approx(weight.ours, rel=1e-6)


@pytest.mark.nightly
def test_every_weight_of_a_paper_experiment_is_in_the_table():
    listed = {(weight.experiment, weight.term) for weight in WEIGHTS}
    # their files say so
    unpublished = {("mixtral_8x7b", "aux"), ("moepp", "heterogeneous"), ("seq_top_k", "aux")}
    for path in (CONF / "experiment" / "paper").glob("*.yaml"):
        for term, values in composed([f"experiment=paper/{path.stem}"])["balance"].items():
            steered = "weight" not in values
            shared = path.stem.startswith("rmoe_enwik8_medium_")
            assert steered or shared or (path.stem, term) in listed | unpublished, (
                f"{path.stem}: {term}"
            )


def test_hugging_faces_loss_is_k_and_ours_one_at_uniform_load():
    """The conversion of Qwen3: their function on a router without a preference."""
    modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    made = uniform(16, 4)
    theirs = modeling.load_balancing_loss_func((made.logits, made.logits), 16, 4)
    ours = Aux(sizes(16, 4), weight=1.0, scope="micro", choices="all").loss([made, made], None)
    torch.testing.assert_close(theirs, torch.tensor(4.0))
    torch.testing.assert_close(ours, torch.tensor(1.0))
    assert next(w for w in WEIGHTS if w.experiment == "qwen3_30b_a3b").uniform == 8


def test_a_sum_over_layers_is_that_many_means():
    assert Weight("deepseekmoe_2b", "aux", 0.01, 1, "sum", "").ours == pytest.approx(0.09)
    assert Weight("deepseekmoe_2b", "aux", 0.01, 1, "mean", "").ours == pytest.approx(0.01)
