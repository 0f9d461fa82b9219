"""`debug=NAME`: what is needed when something looks wrong,
by one word and beside any other choice.
"""

import json

import pytest
import torch

from app.config.compose import composed
from tests.conftest import ROOT, events_of
from tests.support.mistakes import Train


@pytest.mark.parametrize("experiment", ["null", "_base/toy", "paper/deepseekmoe_2b"])
def test_fast_is_three_steps_whatever_the_experiment(experiment: str) -> None:
    trainer = composed([f"experiment={experiment}", "debug=fast"])["trainer"]
    assert (trainer["max_steps"], trainer["val_every"], trainer["checkpoint_every"]) == (3, 3, 3)


def test_fast_goes_to_the_summary(train: Train) -> None:
    run = train("debug=fast", "trainer.max_steps=3")  # the fixture asks for 2
    assert json.loads((run / "summary.json").read_text())["tokens_seen"] == 3 * 4 * 32
    assert [point.step for point in events_of(run).Scalars("Loss/train")] == [0, 1, 2]


def test_overfit_brings_the_loss_of_one_batch_towards_zero(train: Train) -> None:
    run = train("debug=overfit", "trainer.max_steps=100", "optimizer.lr=0.01", "balance=none")
    losses = [point.value for point in events_of(run).Scalars("Loss/train")]
    assert losses[-1] < 0.1 < 2 < losses[0]


@pytest.mark.nightly
def test_profile_shows_the_operations_and_leaves_a_trace(train: Train) -> None:
    run = train("debug=profile", "trainer.max_steps=6")
    text = (
        events_of(run)
        .Tensors("profile/operations/text_summary")[0]
        .tensor_proto.string_val[0]
        .decode()
    )
    assert "aten::mm" in text and "Self CPU time total" in text
    (trace,) = (run / "profile").glob("rank_0.*.pt.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    steps = {
        event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")
    }
    assert len(steps) == 2


def test_a_profile_of_a_run_that_is_too_short_says_so(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("debug=profile", "trainer.max_steps=2")
    assert "callbacks.profile.skip=3: the run has no later step" in capsys.readouterr().err
    assert not (run / "profile").exists()


def test_anomaly_names_the_operation_that_makes_a_nan(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match=r"Function '.*' returned nan values"):
        train(
            "debug=anomaly",
            "optimizer=adamw",
            "optimizer.lr=1e30",
            "trainer.max_steps=9",
            "schedule.warmup_steps=1",
        )
    torch.autograd.set_detect_anomaly(False)


def test_every_preset_is_named_in_the_readme() -> None:
    names = "|".join(sorted(path.stem for path in (ROOT / "conf/debug").glob("*.yaml")))
    assert f"debug={names}" in (ROOT / "README.md").read_text()
