"""The curves of a run, of whatever it has logged."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.analysis.curves import curves_of, table_of

Train = Callable[..., Path]


def test_events_and_table_tell_the_same(train: Train) -> None:
    short = ("trainer.max_steps=4", "trainer.log_every=2", "trainer.val_every=2")
    one = train(*short, name="one")
    other = train(*short, "logger=csv", name="other")
    curves = curves_of(one)
    table = curves_of(other)
    assert (
        [step for step, _ in curves["Loss/train"]]
        == [step for step, _ in curves["Loss/val_bpb"]]
        == [2, 4]
    )
    assert curves.keys() == table.keys() == {"Loss/train", "Loss/val_nats", "Loss/val_bpb"}
    for tag, points in curves.items():
        assert points == [(step, pytest.approx(value, rel=1e-6)) for step, value in table[tag]]


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(train: Train) -> None:
    folder = train("trainer.max_steps=6", "trainer.log_every=1")
    whole = curves_of(folder)["Loss/train"]
    (events,) = (folder / "tb").glob("events*")
    data = events.read_bytes()
    events.write_bytes(data[: 2 * len(data) // 3])
    part = curves_of(folder)["Loss/train"]
    assert 0 < len(part) < len(whole) and part == whole[: len(part)]


def test_a_run_without_a_logger_has_no_curves(train: Train) -> None:
    assert curves_of(train("logger=none")) == {}


def test_a_table_has_a_row_for_each_time_something_was_written(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    written = "step,Loss/val_bpb,Loss/train\n9,,3.5\n9,2.5,\n19,,3.0\n19,2.25,\n"
    (tmp_path / "csv" / "metrics.csv").write_text(written)
    found = table_of(tmp_path, ("Loss/val_bpb", "Loss/train", "router/mean_k"))
    assert found == {
        "Loss/val_bpb": [(10, 2.5), (20, 2.25)],
        "Loss/train": [(10, 3.5), (20, 3.0)],
        "router/mean_k": [],
    }


def test_a_table_that_is_being_written_has_the_rows_that_are_whole(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    path = tmp_path / "csv" / "metrics.csv"
    written = "Loss/train,router/mean_k,step\n3.5,2,9\n3.25,2,19\n"
    for length in range(len(written) + 1):
        path.write_text(written[:length])
        points = table_of(tmp_path, ["Loss/train"])["Loss/train"]
        assert points == [(10, 3.5), (20, 3.25)][: max(0, written[:length].count("\n") - 1)]
