"""Two layouts at equal cost."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from app.config.compose import composed
from app.cost.budget import Budget, on_meta
from app.cost.match import matched
from app.registry import UserError

SMALL = ["model=nano", "tokenizer=bytes", "model.vocab_size=257", "model.hidden_dim=144"]


def run(
    *overrides: str, by: str = "active_flops", reference: str = "experts=coarse"
) -> tuple[dict[str, Any], list[str]]:
    own = [*SMALL, *overrides]
    return composed([*own, f"match.reference='{reference}'", f"match.by={by}"]), own


def budget(config: dict[str, Any]) -> Budget:
    return Budget.of(on_meta(config), config["data"]["seq_len"])


def costs(config: dict[str, Any]) -> dict[str, float]:
    counted = budget(config)
    return {"active_flops": counted.flops_per_token_forward, "total_params": counted.total_params}


@pytest.mark.parametrize("by", ["active_flops", "total_params"])
@pytest.mark.parametrize(
    "layout", ["dense", "fine_grained", "deepseek", "residual", "latent", "moepp", "heterogeneous"]
)
def test_a_layout_comes_within_half_a_percent_of_its_reference(layout, by):
    config, own = run(f"experts={layout}", by=by)
    goal = costs(composed([*own, "experts=coarse"]))[by]
    assert costs(matched(config, own))[by] == pytest.approx(goal, rel=0.005)


@pytest.mark.nightly
@pytest.mark.parametrize("layout", ["deepseek", "longcat"])
def test_both_costs_are_met_with_another_number_of_experts(layout):
    reference = "experts=coarse experts.num_experts=24 experts.top_k=3"
    config, own = run(f"experts={layout}", "model.hidden_dim=192", by="both", reference=reference)
    solved = matched(config, own)
    goal = costs(composed([*SMALL, "model.hidden_dim=192", *reference.split()]))
    assert costs(solved) == pytest.approx(goal, rel=0.005)
    assert solved["experts"]["name"] == layout


def test_without_a_reference_nothing_changes():
    config = composed(SMALL)
    assert matched(config) is config


def test_equal_layouts_stay_as_they_are():
    config, own = run("experts=coarse")
    assert matched(config, own)["experts"] == config["experts"]


def test_solving_twice_changes_nothing():
    config, own = run("experts=deepseek")
    once = matched(config, own)
    assert matched(once, own) == once


def test_the_reference_may_be_the_config_of_a_run(tmp_path):
    reference = composed([*SMALL, "experts=coarse", "experts.hidden_dim=64"])
    OmegaConf.save(OmegaConf.create(reference), tmp_path / "config.yaml")
    config = composed(
        [*SMALL, "experts=fine_grained", f"match.reference={tmp_path / 'config.yaml'}"]
    )
    assert costs(matched(config))["active_flops"] == pytest.approx(
        costs(reference)["active_flops"], rel=0.005
    )


def test_a_reference_that_does_not_exist_is_named():
    config, own = run(reference="nowhere")
    with pytest.raises(
        UserError,
        match=r"match\.reference=nowhere: runs/nowhere/config\.yaml "
        r"does not exist",
    ):
        matched(config, own)


def test_what_cannot_be_matched_says_so_in_one_line():
    config, own = run("experts=dense", by="both")
    with pytest.raises(
        UserError,
        match=r"no width of experts=dense has its total_params within "
        r"0\.5%",
    ) as error:
        matched(config, own)
    assert "\n" not in str(error.value)


def test_an_unknown_cost_names_the_nearest():
    config, own = run(by="active_flop")
    with pytest.raises(UserError, match="did you mean 'active_flops'"):
        matched(config, own)
