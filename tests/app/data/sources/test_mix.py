"""Several sources in one text: domains, shares, phases, and mistakes that name their source."""

import json
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.config.compose import composed
from app.data.module import TokenDataModule, build_data
from app.registry import UserError
from tests.support.interrupted import train
from tests.support.shell import shown, write_text

BOOKS_AND_WEB = "data.sources={books:{path:BOOKS},web:{path:WEB,text_key:body}}"


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., TokenDataModule]:
    """The data module of `data=mix`; BOOKS is a folder of 300 texts, WEB a file of 200 rows."""
    for number in range(300):
        (tmp_path / "books").mkdir(exist_ok=True)
        (tmp_path / f"books/{number}.txt").write_text(
            f"book {number} of the town and the people " * 4
        )
    rows = (json.dumps({"body": f"page {number} of the web " * 4}) + "\n" for number in range(200))
    (tmp_path / "web.jsonl").write_text("".join(rows))

    def made(*words: str, steps: int = 0) -> TokenDataModule:
        places = [
            w.replace("BOOKS", str(tmp_path / "books")).replace("WEB", str(tmp_path / "web.jsonl"))
            for w in words
        ]
        common = [
            "tokenizer=bytes",
            "data.seq_len=32",
            "data.batch_size=8",
            f"data.cache_dir={tmp_path / 'cache'}",
        ]
        config = composed(["data=mix", *common, *places])
        module = build_data(config["data"], config["tokenizer"], 0)
        module.trainer = (
            SimpleNamespace(max_steps=steps, global_step=0, strategy=None) if steps else None
        )  # type: ignore[assignment]
        return module

    return made


def domains(module: TokenDataModule, steps: int) -> Iterator[list[int]]:
    """How many rows of each domain each step has."""
    for batch in islice(module.train_dataloader(), steps):
        yield torch.bincount(batch["domain"][:, 0], minlength=len(module.domains)).tolist()


def test_each_source_is_a_domain_with_all_of_its_documents(
    build: Callable[..., TokenDataModule],
) -> None:
    module = build(BOOKS_AND_WEB)
    documents = list(module.source.documents())
    assert module.domains == ["books", "web"]
    assert [sum(d.domain == name for d in documents) for name in module.domains] == [300, 200]
    assert len({d.id for d in documents}) == 500
    assert {d.domain for d in documents if "page" in str(d.text)} == {"web"}


def test_a_source_of_several_domains_keeps_them_and_shares_its_weight(
    build: Callable[..., TokenDataModule],
) -> None:
    module = build(
        "data.sources={books:{path:BOOKS},own:{data:offline,weights:{speeches:1,python:3}}}",
        "data.weights={books:2,own:2}",
    )
    assert list(module.source.domains) == ["books", "own_speeches", "own_python"]
    assert module.source.phases[0].weights == [2, 0.5, 1.5]
    assert module.source.pinned["sources"]["own"]["versions"]["python"].startswith("Python 3")


def test_rows_come_in_the_shares_of_their_phase(build: Callable[..., TokenDataModule]) -> None:
    words = [
        "data.weights={books:1,web:3}",
        "data.until=0.75",
        "data.final_weights={books:1,web:0}",
    ]
    counts = list(domains(build(BOOKS_AND_WEB, *words, steps=128), 128))
    first = counts[:96]
    last = counts[96:]
    assert [sum(column) for column in zip(*first, strict=True)] == [96 * 2, 96 * 6]
    assert [sum(column) for column in zip(*last, strict=True)] == [32 * 8, 0]


def test_without_weights_rows_come_by_size(build: Callable[..., TokenDataModule]) -> None:
    module = build(BOOKS_AND_WEB)
    rows = module.prepare().rows("train", 32)
    counts = [sum(column) for column in zip(*domains(module, 64), strict=True)]
    assert counts[0] / sum(counts) == pytest.approx(rows[0] / sum(rows), abs=0.01)


def test_text_that_is_read_too_often_is_told_once_for_each_domain(
    build: Callable[..., TokenDataModule], caplog: pytest.LogCaptureFixture
) -> None:
    words = (BOOKS_AND_WEB, "data.weights={books:1,web:9}", "data.max_epochs=2")
    rows = build(*words).prepare().rows("train", 32)
    enough = 2 * rows[1] * 10 // 9 // 8
    build(*words, steps=enough).train_dataloader()
    assert caplog.messages == []
    build(*words, steps=enough * 2).train_dataloader()
    (line,) = caplog.messages
    assert line.startswith(
        "data.max_epochs=2.0: this run reads web 4.0 times; give more of it or less weight to it"
    )
    caplog.clear()
    build(*words[:2], "data.max_epochs=null", steps=enough * 2).train_dataloader()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.sources=3"], "data.sources=3: must be "),
        (["data.sources={books:BOOKS}"], "data.sources.books=.*: must be keys, such as {path: "),
        (
            ["data.sources={books:{data:tekst}}"],
            "data.sources.books.data=tekst: unknown; did you mean 'text'",
        ),
        (
            ["data.sources={books:{pth:x}}"],
            "data.sources.books.pth=x: unknown; did you mean 'path'",
        ),
        (
            ["data.sources={books:{data:hub,max_bytes:0}}"],
            "data.sources.books.max_bytes=0: must be at least 1",
        ),
        (
            ["data.sources={b:{data:enwik8,path:BOOKS}}"],
            "data.sources.b.source=enwik8: is counted in bytes",
        ),
        (["data.sources={a-b:{path:BOOKS}}"], "data.sources.a-b: a name must be of letters"),
        (
            [BOOKS_AND_WEB, "data.weights={book:1}"],
            "data.weights.book=1.0: unknown; did you mean 'books'",
        ),
        (
            [BOOKS_AND_WEB, "data.weights={books:1}"],
            "data.weights=.*: leaves out web; a share of 0 is never read",
        ),
        (
            [BOOKS_AND_WEB, "data.weights={books:-1,web:1}"],
            "data.weights.books=-1.0: must not be negative",
        ),
        (
            [BOOKS_AND_WEB, "data.weights={books:0,web:0}"],
            "data.weights=.*: one of them must be positive",
        ),
        (
            [BOOKS_AND_WEB, "data.until=0.5"],
            "data.until=0.5: goes with final_weights=None; set both, or none",
        ),
        (
            [BOOKS_AND_WEB, "data.until=1", "data.final_weights={books:1,web:1}"],
            "data.until=1.0: must be above 0",
        ),
    ],
)
def test_a_mistake_names_the_source_and_the_key(
    build: Callable[..., TokenDataModule], words: list[str], line: str
) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        build(*words)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "{data:offline,by_size:true}",
            "data.sources.x: its domains have shares by size; give it weights of its own",
        ),
        (
            "{data:mix,sources:{a:{path:BOOKS}},weights:{a:1},until:0.5,final_weights:{a:1}}",
            "data.sources.x.until: the phases are those of the whole; set it to null",
        ),
    ],
)
def test_shares_that_cannot_be_divided_are_told_before_text_is_read(
    build: Callable[..., TokenDataModule], source: str, line: str
) -> None:
    module = build(f"data.sources={{x:{source}}}", "data.weights={x:1}")
    with pytest.raises(UserError, match=f"^{line}"):
        module.prepare()
    assert not module.cache_dir.exists()


SMALL = (
    "model=nano tokenizer=bytes data=mix data.seq_len=32 data.batch_size=4 data.val_rows=4 "
    "callbacks=off"
)
SHARES = "data.weights={a:1,b:0} data.until=0.5 data.final_weights={a:0,b:1}"
STEPS = "trainer.max_steps=4 trainer.val_every=2 trainer.checkpoint_every=2 trainer.log_every=1"
LINE = f"{SMALL} data.sources={{a:{{path:t.txt}},b:{{path:u.txt}}}} {SHARES} {STEPS}".split()


@pytest.mark.nightly
def test_a_killed_mix_goes_on_with_its_phases_from_where_its_text_is(tmp_path: Path) -> None:
    write_text(tmp_path)
    (tmp_path / "t.txt").rename(tmp_path / "u.txt")
    write_text(tmp_path)
    assert train(tmp_path, [*LINE, "run=straight"]) == 0
    fourth = ("training step", 4)
    assert train(tmp_path, [*LINE, "run=cut"], fourth, signal.SIGKILL) == -signal.SIGKILL
    (tmp_path / "u.txt").rename(tmp_path / "elsewhere.txt")
    assert train(tmp_path, ["run=cut", "resume=true", "data.sources.b.path=elsewhere.txt"]) == 0
    cut = shown(tmp_path / "runs/cut")
    assert cut == shown(tmp_path / "runs/straight")
    assert {"Loss/val_bpb_a", "Loss/val_bpb_b"} <= set(cut)
