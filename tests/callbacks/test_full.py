"""The group of all callbacks on a short real run."""

import pytest
import torch

from callbacks.gradient_norms import parameter_groups
from callbacks.layer_information import square
from callbacks.routing_change import RoutingChange
from callbacks.speed import Speed
from tests.callbacks.conftest import Run, Start, starter
from tests.callbacks.test_brief import OFTEN

FULL = ("callbacks=full", *OFTEN, "callbacks.controllers.every=2", "callbacks.weight_similarity.every=2",
        "balance=loss_free", "callbacks.speed.peak_flops=1e12", "trainer.gradient_clip_val=null")  # fmt: skip
SPECIALISATION = ("routing_change", "layer_information", "rmoe_layer_information", "weight_similarity")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return starter(tmp_path_factory.mktemp("full"))(*FULL)


def test_the_event_file_holds_all_of_it(run: Run) -> None:
    tags = run.events.Tags()
    assert {"experts/load_p10", "router/k_p95", "gradient/router", "speed/mfu", "controllers/loss_free_bias_max",
            "controllers_by_layer/loss_free_bias_min/1"} <= set(tags["scalars"])  # fmt: skip
    assert {f"specialisation/{name}" for name in SPECIALISATION} <= set(tags["scalars"])
    assert {"specialisation/co_activation", "specialisation/layer_information"} <= set(tags["images"])
    assert "controllers/loss_free_bias/0" in tags["histograms"]
    assert "specialisation/typical_tokens/1/text_summary" in tags["tensors"]
    assert run.scalar("router/k_p95")[-1] == run.module.model.routers()[0].top_k
    assert 0 < run.scalar("speed/mfu")[-1] < 1


def test_gradient_norms_add_up_to_that_of_everything(run: Run) -> None:
    parts = [run.scalar(f"gradient/{name}")[-1] for name in ("router", "experts", "rest")]
    total = run.scalar("train/grad_norm")[-1]
    assert sum(part**2 for part in parts) ** 0.5 == pytest.approx(total, rel=1e-4)


def test_every_parameter_is_in_one_group(run: Run) -> None:
    groups = parameter_groups(run.module.model)
    assert sum(map(len, groups.values())) == len(list(run.module.model.parameters()))
    assert all(groups.values())


def test_an_unknown_peak_is_said(start: Start) -> None:
    tags = start(callbacks=[Speed(peak_flops=None)], steps=2).events.Tags()
    assert "speed/mfu" not in tags["scalars"]
    assert "speed/mfu/text_summary" in tags["tensors"]


def test_a_model_that_does_not_learn_does_not_change_its_routing(start: Start) -> None:
    run = start("optimizer.lr=0.0", callbacks=[RoutingChange(rows=1)])
    assert run.scalar("specialisation/routing_change") == [0.0]


def test_pairs_of_layers_become_a_symmetric_matrix() -> None:
    matrix = square(torch.tensor([1.0, 2.0, 3.0]))
    assert matrix.diagonal().isnan().all()
    assert matrix.nan_to_num(0).tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]
