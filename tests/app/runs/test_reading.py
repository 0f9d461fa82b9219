"""A run is read back from its folder alone: the text and the cache may have changed or gone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from app import evaluate, generate, report
from app.registry import UserError

Train = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def own(text: Path, tmp_path: Path) -> Path:
    """A text of the run's own, which may be changed."""
    return Path(shutil.copy(text, tmp_path / "own.txt"))


@pytest.fixture
def run(train: Train, own: Path, tmp_path: Path, capsys: Captured) -> Path:
    learned = (
        "tokenizer=bpe",
        "tokenizer.vocab_size=300",
        f"data.path={own}",
        f"data.cache_dir={tmp_path / 'cache'}",
    )
    folder = train(*learned, "data.val_rows=6", "trainer.max_steps=3", "trainer.checkpoint_every=1")
    capsys.readouterr()
    return folder


def said(command: Callable[[list[str]], None], capsys: Captured, *words: object) -> str:
    capsys.readouterr()
    command([str(word) for word in words])
    return capsys.readouterr().out


@pytest.mark.nightly
def test_a_run_says_the_same_when_its_text_and_the_cache_have_gone(
    run: Path, own: Path, tmp_path: Path, capsys: Captured
) -> None:
    def everything() -> list[str | bytes]:
        other = tmp_path / "other.txt"
        other.write_text("def main() -> None:\n    return 0\n" * 40)
        elsewhere = [
            "data=text",
            f"data.path={other}",
            f"data.cache_dir={tmp_path / 'other-cache'}",
        ]
        words = said(generate.main, capsys, run, "--prompt", "def main", "--max-tokens", 8)
        figures = said(evaluate.main, capsys, run, *elsewhere, "--json")
        said(report.main, capsys, run, "--rows", 3)
        shutil.rmtree(tmp_path / "other-cache")
        return [
            words,
            figures,
            (run / "report/index.html").read_bytes(),
            (run / "report/report.json").read_bytes(),
        ]

    before = everything()
    own.write_text("something else\n" * 1000)
    shutil.rmtree(tmp_path / "cache")
    assert everything() == before
    own.unlink()
    assert everything() == before


def test_a_run_from_before_a_key_of_the_config_is_read_as_it_was(
    run: Path, capsys: Captured
) -> None:
    figures = said(evaluate.main, capsys, run, "--json")
    config = (run / "config.yaml").read_text()
    assert "  qkv_bias: false\n" in config
    (run / "config.yaml").write_text(config.replace("  qkv_bias: false\n", ""))
    assert said(evaluate.main, capsys, run, "--json") == figures


def test_a_saved_config_whose_group_is_no_group_is_refused_in_one_line(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": 3}))
    with pytest.raises(
        UserError,
        match=r"config\.yaml: model=3: a run needs one; choose one of "
        r"base, nano",
    ):
        evaluate.main([str(run)])


def test_the_runs_own_figures_need_its_own_text(run: Path, own: Path, capsys: Captured) -> None:
    figures = json.loads(said(evaluate.main, capsys, run, "--json"))
    moved = own.rename(own.with_name("moved.txt"))
    assert json.loads(
        said(evaluate.main, capsys, run, f"data.path={moved}", "--json")
    ) == pytest.approx(figures)
    shutil.copy(moved, own)
    own.write_text(own.read_text() + "one more line\n")
    with pytest.raises(UserError, match="was trained on other text"):
        evaluate.main([str(run)])


def test_overrides_act_on_the_saved_config_and_others_are_refused_by_name(
    run: Path, capsys: Captured
) -> None:
    figures = json.loads(said(evaluate.main, capsys, run, "--json"))
    cut = json.loads(said(evaluate.main, capsys, run, "data.micro_batch_size=1", "--json"))
    assert cut == pytest.approx(figures, rel=1e-5)
    with pytest.raises(UserError, match=r"trainer\.max_steps=3: is fixed by the run"):
        evaluate.main([str(run), "trainer.max_steps=3"])
    with pytest.raises(UserError, match=r"data\.pth=x: unknown; did you mean 'path'"):
        evaluate.main([str(run), "data.pth=x"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("short.txt", "a text of forty-four bytes, not one byte more"),
        ("row.jsonl", '{"text": "one row only"}\n'),
    ],
)
def test_a_tiny_text_is_evaluated(
    run: Path, tmp_path: Path, capsys: Captured, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    figures = said(
        evaluate.main, capsys, run, "data=text", f"data.path={tmp_path / name}", "--json"
    )
    assert json.loads(figures)["nats"] > 0


def test_a_checkpoint_stands_for_its_run_and_a_run_for_its_newest_checkpoint(
    run: Path, train: Train, tmp_path: Path, capsys: Captured
) -> None:
    words = ("--prompt", "def", "--max-tokens", 4)
    newest = said(generate.main, capsys, run / "checkpoints/step_3.ckpt", *words)
    assert said(generate.main, capsys, run, *words) == newest
    figures = [
        said(evaluate.main, capsys, run / f"checkpoints/step_{step}.ckpt", "--json")
        for step in (2, 3)
    ]
    assert figures[0] != figures[1]
    dense = train("experts=dense", "experts.hidden_dim=32", name="dense")
    same = ("experts=coarse", "experts.hidden_dim=32", "trainer.max_steps=1")
    for name, path in (("of_run", dense), ("of_checkpoint", dense / "checkpoints/step_2.ckpt")):
        train(*same, "init=upcycle", f"init.checkpoint={path}", name=name)
    one, two = (
        json.loads((tmp_path / f"runs/{name}/summary.json").read_text())
        for name in ("of_run", "of_checkpoint")
    )
    assert one["val_nats"] == two["val_nats"]
    shutil.rmtree(dense)
    # what it started from is in its weights now
    train("resume=true", "trainer.max_steps=2", name="of_run")
