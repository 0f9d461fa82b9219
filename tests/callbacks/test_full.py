"""The group of all callbacks on a short real run."""

import time
from pathlib import Path

import lightning
import pytest
import torch

from app.cost.budget import Budget
from app.training.module import Batch, LanguageModel
from callbacks import draw
from callbacks.domain_pictures import DomainPictures, by_domain
from callbacks.gradient_norms import parameter_groups
from callbacks.layer_information import square
from callbacks.routing_callback import RoutingCallback
from callbacks.routing_change import RoutingChange
from callbacks.skill_shares import SkillShares
from callbacks.speed import Speed
from callbacks.utilisation import Utilisation
from routers.contract import Routing
from tests.support.watched import OFTEN, Run, Start, starter

FULL = (
    "callbacks=full",
    *OFTEN,
    "callbacks.controllers.every=2",
    "callbacks.weight_similarity.every=2",
    "balance=loss_free",
    "callbacks.speed.peak_flops=1e12",
    "trainer.gradient_clip_val=null",
)
SPECIALISATION = (
    "routing_change",
    "layer_information",
    "rmoe_layer_information",
    "weight_similarity",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return starter(tmp_path_factory.mktemp("full"))(*FULL)


def test_the_event_file_holds_all_of_it(run: Run) -> None:
    tags = run.events.Tags()
    assert {
        "experts/load_p10",
        "gradient/router",
        "speed/mfu",
        "controllers/loss_free_bias_max",
        "controllers_by_layer/loss_free_bias_min/1",
    } <= set(tags["scalars"])
    assert {f"specialisation/{name}" for name in SPECIALISATION} <= set(tags["scalars"])
    assert {"specialisation/co_activation", "specialisation/layer_information"} <= set(
        tags["images"]
    )
    assert "controllers/loss_free_bias/0" in tags["histograms"]
    assert "specialisation/typical_tokens/1/text_summary" in tags["tensors"]
    assert "router/k_p95" not in tags["scalars"], "all tokens have as many experts"
    assert 0 < run.scalar("speed/mfu")[-1] < 1


def test_the_spread_of_the_number_of_experts_is_told_where_it_differs(start: Start) -> None:
    run = start("router=top_p", "router.select.p=0.3", callbacks=[Utilisation()])
    assert (
        1
        <= run.scalar("router/k_p5")[-1]
        < run.scalar("router/k_p95")[-1]
        <= run.scalar("router/k_max")[-1]
        <= 8
    )


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


class Turned(lightning.Callback):
    """Lets every token choose another expert after each validation: expert e becomes e + 1."""

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        for router in pl_module.model.routers():
            weight = router.score.proj.weight.data
            weight.copy_(weight.roll(1, 0))


def test_a_router_whose_experts_change_places_has_changed_its_whole_routing(start: Start) -> None:
    parts = ("optimizer.lr=0.0", "router.select.k=1", "balance=none")
    run = start(*parts, callbacks=[RoutingChange(rows=1), Turned()])
    assert run.scalar("specialisation_by_layer/routing_change/0") == [1.0]


class Saves(lightning.Callback):
    """A checkpoint before every step, as a run with `trainer.checkpoint_every=1` writes them."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "a.ckpt")


@pytest.mark.nightly
def test_a_checkpoint_before_a_step_takes_nothing_of_its_forward_pass(start: Start) -> None:
    def slow(module: LanguageModel) -> None:
        module.model.register_forward_hook(lambda *_: time.sleep(0.1))

    run = start(callbacks=[Speed(peak_flops=None), Saves()], log_every=1, change=slow)
    assert min(run.scalar("speed/forward_ms")) >= 200, "two micro-batches"


def test_the_share_of_the_peak_is_tokens_times_flops_over_the_peak(run: Run) -> None:
    per_token = Budget.of(run.module.model, 32).flops_per_token_train
    for mfu, speed in zip(run.scalar("speed/mfu"), run.scalar("speed/tokens_per_s"), strict=True):
        assert mfu == pytest.approx(speed * per_token / 1e12, rel=1e-5)


def test_the_scalars_of_a_controller_are_those_of_its_biases(run: Run) -> None:
    bias = run.module.model.balancer.terms["loss_free"].bias
    assert bias.any()
    for name, value in (("max", bias.amax(-1)), ("min", bias.amin(-1)), ("mean", bias.mean(-1))):
        for layer in range(2):
            last = run.scalar(f"controllers_by_layer/loss_free_bias_{name}/{layer}")[-1]
            assert last == pytest.approx(float(value[layer]), abs=1e-6)


class Counted(RoutingCallback):
    """Counts one by one which domain's tokens go to which expert
    of each layer in the last validation.
    """

    def __init__(self) -> None:
        self.load = torch.zeros(2, 3, 8)  # layers, domains, experts

    def on_validation_start(self, *_: object) -> None:
        self.load.zero_()

    def on_validation_routings(self, routings: list[Routing], batch: Batch) -> None:
        for layer, routing in enumerate(routings):
            for token, expert in zip(routing.token.tolist(), routing.expert.tolist(), strict=True):
                if expert < 8:
                    self.load[layer, int(batch["domain"].flatten()[token]), expert] += 1


def watch_panels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[torch.Tensor], list[str]]]:
    """The maps that are drawn from now on, and the names of their rows."""
    drawn: list[tuple[list[torch.Tensor], list[str]]] = []
    painted = draw.panels
    monkeypatch.setattr(
        draw,
        "panels",
        lambda maps, **more: drawn.append((maps, more["yticklabels"])) or painted(maps, **more),
    )
    return drawn


def test_experts_of_one_domain_each_are_drawn_as_a_diagonal(start: Start, monkeypatch) -> None:
    drawn = watch_panels(monkeypatch)
    planted = (
        "router=oracle",
        "experts=coarse",
        "experts.num_experts=3",
        "experts.top_k=1",
        "balance=none",
    )
    run = start(*planted, callbacks=[DomainPictures(every=1, top=3.0)])
    maps, names = next(shown for shown in reversed(drawn) if len(shown[1][0]) == 1)
    assert names == ["a", "b", "c"]
    for cells in maps:
        torch.testing.assert_close(cells.float(), 3 * torch.eye(3))
    assert run.scalar("specialisation/domain_information")[-1] > 0.8


def test_the_picture_of_domains_shows_the_load_of_each_domain_in_its_row(
    start: Start, monkeypatch
) -> None:
    drawn = watch_panels(monkeypatch)
    counted = Counted()
    pictures = DomainPictures(every=1, top=3.0)
    start(callbacks=[counted, pictures])
    maps, names = next(shown for shown in reversed(drawn) if len(shown[1][0]) == 1)
    assert names == ["a", "b", "c"] and pictures.order is not None
    share = counted.load / counted.load.mean(-1, keepdim=True)
    places = pictures.order.argsort(-1)[:, None].expand_as(share)
    torch.testing.assert_close(torch.stack(maps).float().gather(-1, places), share)


def test_experts_stand_by_their_domain_and_stay_there() -> None:
    # (L, domains, E): 1 serves the first domain
    load = torch.tensor([[[1.0, 9, 0, 5], [8, 0, 1, 5]]])
    assert by_domain(load).tolist() == [[1, 0, 3, 2]]
    first = DomainPictures(every=1, top=3.0)
    first.order = by_domain(load)
    second = DomainPictures(every=1, top=3.0)
    second.load_state_dict(first.state_dict())
    assert second.order is not None and second.order.tolist() == [[1, 0, 3, 2]]


def test_pairs_of_layers_become_a_symmetric_matrix() -> None:
    matrix = square(torch.tensor([1.0, 2.0, 3.0]))
    assert matrix.diagonal().isnan().all()
    assert matrix.nan_to_num(0).tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]


def test_the_shares_of_skills_are_told_by_domain(start: Start) -> None:
    planted = (
        "router=oracle",
        "balance=none",
        "experts=lora_skills",
        "experts.skills=[one,two,three]",
    )
    run = start(*planted, "experts.top_k=1", "router.weigh.scale=0.5", callbacks=[SkillShares()])
    for domain, own in zip("abc", ("one", "two", "three"), strict=True):
        for skill in ("one", "two", "three"):
            assert run.scalar(f"skills/{domain}/{skill}")[-1] == pytest.approx(0.5 * (skill == own))
