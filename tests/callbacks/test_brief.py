"""The default group of callbacks on a short real run."""

import lightning
import pytest
import torch
from torch import Tensor

from app.registry import check, find
from app.training.module import Batch
from callbacks import draw
from callbacks.expert_pictures import ExpertPictures
from callbacks.expert_scalars import ExpertScalars
from callbacks.overview import run_config
from callbacks.progress import ProgressLine, clock
from callbacks.routing_callback import RoutingCallback
from callbacks.samples import Samples
from callbacks.writing import table
from tests.support.watched import OFTEN, Start, collapse, read_config


def test_the_event_file_holds_scalars_pictures_histograms_text_layout_and_hparams(
    start: Start,
) -> None:
    run = start("callbacks=brief", *OFTEN)
    tags = run.events.Tags()
    assert {
        "experts/maxvio",
        "experts_by_layer/maxvio/1",
        "experts/drop_rate",
        "router/token_entropy",
        "train/lr",
        "speed/tokens_per_s",
        "val_experts/dead",
        "Loss/train",
    } <= set(tags["scalars"])
    assert {
        "experts/load",
        "experts/load_over_time",
        "specialisation/experts_by_domain",
        "specialisation/experts_by_topic",
    } <= set(tags["images"])
    assert "experts/load/0" in tags["histograms"]
    assert {"samples/continuation/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])
    assert "_hparams_/experiment" in run.events.summary_metadata
    steps = {
        tag: [event.step for event in run.events.Scalars(tag)]
        for tag in ("Loss/train", "experts/maxvio")
    }
    assert steps["Loss/train"] == steps["experts/maxvio"] == [1, 3]


@pytest.mark.parametrize("group", ["off", "brief", "full"])
def test_every_entry_of_a_group_names_a_callback_and_its_knobs(group: str) -> None:
    for key, entry in read_config(f"callbacks={group}")["callbacks"].items():
        values = dict(entry)
        check(find("callback", values.pop("name")), values, f"callbacks.{key}")


class Losses(lightning.Callback):
    """The loss of every step and the state of the generator after it."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.seen.append(
            (float(trainer.callback_metrics["Loss/train"]), int(torch.random.get_rng_state().sum()))
        )


def test_training_does_not_notice_that_it_is_watched(start: Start, tmp_path) -> None:
    alone = Losses()
    watched = Losses()
    start(callbacks=[alone], folder=tmp_path / "alone")
    samples = Samples(every=1, prompts=["ab"], num_tokens=3, temperature=1.0)
    parts: list[lightning.Callback] = [
        samples,
        ExpertScalars(),
        ExpertPictures(every=1, top=3.0),
        watched,
    ]
    run = start(callbacks=parts, folder=tmp_path / "watched")
    assert watched.seen == alone.seen
    assert not run.module.routing_hooks


class Count(RoutingCallback):
    """How many tokens were seen, in training and in validation."""

    def __init__(self) -> None:
        self.training = self.validation = 0

    def on_training_routings(self, routings, batch) -> None:
        self.training += int(batch["valid"].sum())

    def on_validation_routings(self, routings, batch) -> None:
        self.validation += int(batch["valid"].sum())


def test_validation_never_enters_the_statistics_of_training(start: Start) -> None:
    seen = []

    class Spy(ExpertScalars):
        def on_train_batch_end(self, trainer, pl_module, *_: object) -> None:
            seen.append(int(self.total._sums["tokens"]))
            super().on_train_batch_end(trainer, pl_module)

    count = Count()
    start(callbacks=[Spy(), count], steps=4, validate_every=1, log_every=4)
    assert count.validation > 0
    assert seen[-1] == count.training


def test_activation_checkpointing_shows_every_forward_pass_once(start: Start, tmp_path) -> None:
    plain = Count()
    recomputing = Count()
    start(callbacks=[plain], folder=tmp_path / "plain", steps=1)
    start(
        "model.activation_checkpointing=true",
        callbacks=[recomputing],
        folder=tmp_path / "again",
        steps=1,
    )
    assert recomputing.training == plain.training > 0


def test_a_collapsed_router_shows_in_the_event_file(start: Start) -> None:
    run = start("callbacks=brief", *OFTEN, steps=2, change=collapse)
    router = run.module.model.routers()[0]
    num_experts = router.num_experts
    k = router.top_k
    assert run.scalar("experts/maxvio")[-1] == pytest.approx(num_experts / k - 1)
    assert run.scalar("experts/dead")[-1] == num_experts - k
    assert run.scalar("experts/load_max")[-1] == pytest.approx(num_experts / k)


def test_load_and_gates_are_drawn_as_they_are_told(start: Start, monkeypatch) -> None:
    """The brightest cell of a row is the largest value of the scalars, over the same two steps."""
    drawn: dict[str, Tensor] = {}
    heat_map = draw.heat_map
    monkeypatch.setattr(
        draw,
        "heat_map",
        lambda cells, **k: drawn.update({k["title"]: cells}) or heat_map(cells, **k),
    )
    run = start(callbacks=[ExpertScalars(), ExpertPictures(every=2, top=3.0)], steps=2)
    assert "experts/importance" in run.events.Tags()["images"]
    for title, name in (
        ("Load of every expert, step 1", "load"),
        ("Gates of every expert, step 1", "importance"),
    ):
        told = [run.scalar(f"experts_by_layer/{name}_max/{layer}")[-1] for layer in range(2)]
        assert drawn[title].amax(1).tolist() == pytest.approx(told)


def test_a_capacity_of_the_even_load_drops_half_of_what_goes_to_half_of_the_experts(
    start: Start,
) -> None:
    """Half of the experts get every token, and have places for half of them;
    padding takes no place.
    """
    # real ones of each micro-batch of 64
    tokens: list[int] = []

    class Count(lightning.Callback):
        def on_train_batch_start(
            self, trainer: object, module: object, batch: Batch, *_: object
        ) -> None:
            tokens.extend(int(valid.sum()) for valid in batch["valid"].split(2))

    knobs = ("router/drop=capacity", "router.drop.factor=1.0")
    run = start(*knobs, steps=2, change=collapse, callbacks=[ExpertScalars(), Count()])
    dropped = sum(max(0, number - 32) for number in tokens) / sum(tokens)
    assert (
        run.scalar("experts/drop_rate")
        == run.scalar("experts_by_layer/drop_rate/1")
        == pytest.approx([dropped])
    )
    assert len(tokens) == 4 and max(tokens) == 64


def test_hyperparameters_begin_with_what_runs_differ_in(start: Start) -> None:
    folder = start(
        "router=xmoe", "balance=[aux,z_loss]", "optimizer.lr=0.003", callbacks=[], steps=1
    ).folder
    first = dict(list(run_config(folder).items())[:5])
    assert first == {
        "router": "cosine softmax top_k none",
        "experts": "fine_grained",
        "balance": "aux z_loss",
        "size": "2 x 32",
        "lr": 0.003,
    }


def test_a_dense_model_shows_no_experts_and_trains(start: Start) -> None:
    run = start("callbacks=full", *OFTEN, "experts=dense", steps=2)
    assert not [
        tag for tag in run.events.Tags()["scalars"] if tag.startswith(("experts", "router"))
    ]
    assert run.scalar("speed/tokens_per_s")[-1] > 0


def test_progress_outside_a_terminal_is_one_line_every_n_steps(start: Start, capsys) -> None:
    start(callbacks=[ProgressLine(every=2)], steps=4, validate_every=4)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "4/4", "4/4"]
    assert lines[1].split()[2] == "loss" and "tokens/s" in lines[1] and lines[1].endswith("left")
    assert "bits per byte" in lines[3]


def test_time_left_reads_as_minutes_or_hours() -> None:
    assert [clock(s) for s in (9, 190, 3661)] == ["0:09", "3:10", "1:01:01"]


def test_a_table_shows_text_as_it_is() -> None:
    assert table(["a"], [["x|y\n*"]]).splitlines()[2] == "| x&#124;y ⏎ &#42; |"


def test_a_history_that_is_full_joins_neighbours_by_their_steps() -> None:
    pictures = ExpertPictures(every=1, top=3.0)
    pictures.steps = [100, 200, 220, 230, 330]
    pictures.history = [torch.full((1, 2), value) for value in (1.0, 3.0, 0.0, 3.0, 7.0)]
    pictures._halve()
    assert pictures.steps == [200, 230, 330]
    assert [values[0, 0].item() for values in pictures.history] == pytest.approx([2.0, 1.0, 7.0])


def test_the_history_of_the_load_is_resumed() -> None:
    first = ExpertPictures(every=1, top=3.0)
    second = ExpertPictures(every=1, top=3.0)
    first.steps = [1, 2]
    first.history = [torch.ones(2, 3)] * 2
    second.load_state_dict(first.state_dict())
    assert second.steps == [1, 2] and len(second.history) == 2


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: ProgressLine(every=0), "every=0: must be at least 1"),
        (lambda: ExpertPictures(every=1, top=0.0), "top=0.0: must be positive"),
        (lambda: Samples(every=1, prompts=[], num_tokens=1, temperature=0.0), "prompts"),
    ],
)
def test_a_knob_out_of_range_is_refused(build, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        build()
