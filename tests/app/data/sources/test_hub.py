"""The Hub's own layout: a data set card, configs, Parquet shards and revisions,
through train.py.
"""

import importlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.data.sources.hub import Hub
from app.registry import UserError
from tests.support.hub_server import NEW, OLD, Server, serving, write_set
from tests.support.interrupted import FRESH, Moment, ended, train_here
from tests.support.shell import shown

HUB: dict[str, Any] = {
    "config": None,
    "revision": None,
    "splits": None,
    "text_key": "text",
    "join_rows": False,
    "streaming": False,
    "shuffle_buffer": None,
    "max_bytes": None,
}
SMALL = (
    "model=nano tokenizer=bytes data=hub data.seq_len=16 data.batch_size=2 data.val_rows=2 "
    "callbacks=off"
)
LINE = (
    f"{SMALL} trainer.max_steps=4 trainer.val_every=2 trainer.checkpoint_every=2 "
    "trainer.log_every=1"
)
SET = "data.name=owner/set data.config=en"
Told = Callable[..., tuple[int | None, str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hub")
    write_set(folder)
    with serving(folder) as server:
        yield server


@pytest.fixture
def hub(served: Server) -> Iterator[Server]:
    yield served
    served.head = NEW


def _told(folder: Path, words: list[str], address: str, moment: Moment | None) -> None:
    os.environ.update(HF_ENDPOINT=address, HF_HOME=str(folder / "hf"))
    for name in [name for name in sys.modules if name.startswith("huggingface_hub")]:
        # it reads the environment when it is imported
        del sys.modules[name]
    # else 5 s for each stream
    importlib.import_module("datasets").config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    os.dup2(os.open(folder / "told", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    train_here(folder, [*LINE.split(), *words], moment, signal.SIGKILL)


@pytest.fixture
def told(hub: Server, tmp_path: Path) -> Told:
    """Trains with these words, in a fresh process; how it ended and what it said."""

    def run(
        words: str, address: str = hub.address, moment: Moment | None = None
    ) -> tuple[int | None, str]:
        process = FRESH.Process(target=_told, args=(tmp_path, words.split(), address, moment))
        process.start()
        return ended(process), (tmp_path / "told").read_text()

    return run


def mistake(told: tuple[int | None, str]) -> str:
    """The one line of a user's mistake."""
    status, said = told
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    # A slow machine prints a notice before the error.
    assert status == 2 and said.splitlines()[-1:] == errors, said
    return said


def counts(folder: Path) -> dict[str, int]:
    """Documents of each split in the one cache."""
    (meta,) = (folder / ".cache").glob("*/meta.json")
    found = json.loads(meta.read_text())["documents_tokens_bytes"]
    return {
        split: sum(number for number, _, _ in domains.values()) for split, domains in found.items()
    }


def text(folder: Path) -> str:
    """The training split of the one cache, a line a document."""
    (file,) = (folder / ".cache").glob("*/train.0.tokens")
    ids = memoryview(file.read_bytes()).cast("H")
    return bytes(10 if token == 256 else token for token in ids).decode()


def test_a_config_is_read_and_its_revision_kept(told: Told, tmp_path: Path) -> None:
    status, said = told(f"{SET} run=run")
    assert status == 0, said
    found = counts(tmp_path)
    assert found["val"] == 50 and found["train"] + found["test"] == 600 and 0 < found["test"] < 50
    assert (
        yaml.safe_load((tmp_path / "runs/run/config.yaml").read_text())["data"]["revision"] == NEW
    )
    assert (
        "b en 2 row 199: what" in text(tmp_path)
        and "title" not in text(tmp_path)
        and "fr" not in text(tmp_path)
    )


def test_splits_a_nested_column_and_an_older_revision_are_chosen(
    told: Told, tmp_path: Path
) -> None:
    status, said = told(
        "data.name=owner/set data.config=fr data.splits={train:train_sft} "
        f"data.text_key=meta.title data.revision={OLD} data.streaming=true"
    )
    assert status == 0, said
    assert sum(counts(tmp_path).values()) == 600
    assert set(re.sub(r"\d", "", text(tmp_path)).split("\n")) == {"", "title "}


@pytest.mark.nightly
def test_a_stream_is_drawn_through_a_buffer_out_of_all_shards_alike_each_time(
    told: Told, tmp_path: Path
) -> None:
    line = f"{SET} data.streaming=true data.max_bytes=20000 logger=none"
    assert told(line)[0] == 0
    plain = text(tmp_path)
    drawn = []
    for _ in range(2):
        shutil.rmtree(tmp_path / ".cache")
        assert told(f"{line} data.shuffle_buffer=100")[0] == 0
        drawn.append(text(tmp_path))
    assert {found[0] for found in re.findall(r"b en (\d) row (\d+)", plain)} == {"0", "1"}
    assert {found[0] for found in re.findall(r"b en (\d) row (\d+)", drawn[0])} != {"0", "1"}
    rows = [int(found[1]) for found in re.findall(r"b en (\d) row (\d+)", drawn[0])]
    assert rows != sorted(rows)
    assert drawn[0] == drawn[1]


@pytest.mark.nightly
def test_a_killed_stream_goes_on_at_its_row_though_the_set_has_moved_on(
    told: Told, hub: Server, tmp_path: Path
) -> None:
    hub.head = OLD
    line = f"{SET} data.streaming=true data.shuffle_buffer=100"
    assert told(f"{line} run=straight")[0] == 0
    third = ("training step", 4)
    assert told(f"{line} run=cut", moment=third)[0] == -signal.SIGKILL
    hub.head = NEW
    shutil.rmtree(tmp_path / ".cache")
    status, said = told("resume=true run=cut")
    assert status == 0, said
    assert shown(tmp_path / "runs/cut") == shown(tmp_path / "runs/straight")
    assert "a en" in text(tmp_path) and "b en" not in text(tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", r"data.name=null: data=hub needs a data set; set data.name=OWNER/NAME"),
        (
            "data.name=owner/set",
            r"data.name=owner/set: cannot be read \(Config name is "
            r"missing.*\['en', 'fr'\]",
        ),
        (
            "data.name=owner/set data.config=de",
            r"BuilderConfig 'de' not found. Available: "
            r"\['en', 'fr'",
        ),
        (
            "data.name=owner/no",
            r"data.name=owner/no: no such data set, or not for you; check the "
            r"name, set HF_TOKEN",
        ),
        (f"{SET} data.revision=v9", r"data.revision=v9: owner/set has none such; null: the newest"),
        (
            "data.name=owner/set data.config=fr",
            r"data.splits=null: the set has no split 'train' "
            r"but train_sft; name",
        ),
        (
            f"{SET} data.splits={{train:trian}}",
            r"data.splits.train=trian: unknown; did you mean "
            r"'train'",
        ),
        (
            f"{SET} data.text_key=txt",
            r"data.text_key=txt: no such column; set .* to one of text, "
            r"meta, other",
        ),
    ],
)
def test_a_mistake_is_one_line(told: Told, tmp_path: Path, words: str, line: str) -> None:
    assert re.search(line, mistake(told(words)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("listens", [True, False])
def test_a_hub_that_does_not_answer_is_one_line_within_half_a_minute(
    monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # and never answers
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
        )
        if not listens:
            server.close()
        before = time.monotonic()
        with pytest.raises(
            UserError,
            match=r"^data.name=o/set: the Hub cannot be reached "
            r"\(.*data.path=FILE$",
        ):
            Hub(name="o/set", **HUB).fingerprint()
    assert time.monotonic() - before < 30, "PATIENCE is 4 s; the rest is for a busy machine"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files with a training and a validation split, as `datasets` finds it."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "set"
    folder.mkdir()
    for split, number in (("train", 300), ("validation", 5)):
        rows = (
            json.dumps({"text": f"{split} {row}\n" if row != 7 else "\n"}) + "\n"
            for row in range(number)
        )
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


def test_a_library_that_cannot_write_is_not_a_fault_of_the_text(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path("/dev/null/cache"))
    with pytest.raises(
        UserError,
        match=r"cannot be read \(.*Not a directory.*; set HF_HOME to a "
        r"folder that can be",
    ):
        list(Hub(name=str(local), **HUB).documents())


def test_rows_of_one_running_text_become_one_document_a_split(local: Path) -> None:
    train, val = Hub(name=str(local), **HUB | {"join_rows": True}).documents()
    assert str(train.text).startswith("train 0\ntrain 1\n") and str(train.text).endswith(
        "train 299\n"
    )
    # a blank line is a part of it
    assert "train 6\n\ntrain 8\n" in str(train.text)
    assert (train.split, val.split) == ("train", "val")


def test_a_limit_in_bytes_ends_the_reading(local: Path) -> None:
    documents = list(Hub(name=str(local), **HUB | {"max_bytes": 50}).documents())
    assert sum(len(d.text) for d in documents if d.id.startswith("train")) in range(50, 60)


def test_rows_without_text_are_told(local: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (local / "train.jsonl").open("a") as file:
        file.write('{"text": null}\n')
    assert len(list(Hub(name=str(local), **HUB).documents())) == 304
    assert caplog.messages == [
        f"data.name={local}: 2 of 306 rows without text are left out (1 empty, 1 null), first: "
        "train:8"
    ]


@pytest.mark.parametrize(
    ("knob", "value"),
    [("max_bytes", 0), ("shuffle_buffer", 0), ("splits", {"val": "x"}), ("splits", {"tarin": "x"})],
)
def test_a_knob_out_of_its_range_is_refused(knob: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{knob}"):
        Hub(name="owner/set", **HUB | {knob: value})
