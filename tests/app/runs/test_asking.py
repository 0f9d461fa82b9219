"""What can be asked of a run on the command line:
prompts of every kind, options that mean nothing, windows, steps.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app import evaluate, generate
from app.registry import UserError

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def run(train: Callable[..., Path], capsys: Captured) -> Path:
    folder = train("trainer.max_steps=3", "trainer.checkpoint_every=1", "data.val_rows=4")
    capsys.readouterr()
    return folder


def said(command: Callable[[list[str]], None], capsys: Captured, *words: object) -> str:
    command([str(word) for word in words])
    return capsys.readouterr().out


def test_prompts_of_every_kind_are_continued(run: Path, tmp_path: Path, capsys: Captured) -> None:
    # as a shell gives bytes that are not UTF-8
    no_text = "\udcff\udcfe"
    prompts = ["", "def", "naïve 日本", "<|separator|>", "word " * 50, no_text]
    for prompt in prompts:
        words = said(generate.main, capsys, run, "--prompt", prompt, "--max-tokens", 3)
        shown = prompt.encode("utf-8", "surrogateescape").decode(errors="replace")
        assert words.startswith(shown) and words.endswith("\n")
    file = tmp_path / "prompts.txt"
    file.write_text("def\n\nnaïve 日本\n")
    lines = [
        json.loads(line)
        for line in said(generate.main, capsys, run, "--prompts", file).splitlines()
    ]
    assert [line["prompt"] for line in lines] == ["def", "naïve 日本"]
    alone = said(generate.main, capsys, run, "--prompt", "def")
    assert alone == f"def{lines[0]['continuation']}\n"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "def\\n"}\n')
    assert said(generate.main, capsys, run, "--prompts", tmp_path / "prompts.jsonl").startswith(
        '{"prompt": "def\\n"'
    )


def test_text_that_needs_text_refuses_other_bytes(
    train: Callable[..., Path], capsys: Captured
) -> None:
    learned = train(
        "tokenizer=bpe", "tokenizer.vocab_size=300", "trainer.max_steps=1", name="learned"
    )
    with pytest.raises(UserError, match=r"--prompt: is not UTF-8 .invalid start byte at byte 1"):
        generate.main([str(learned), "--prompt", "a\udcff"])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--temperature nan", "--temperature=nan: must be a number of at least 0"),
        ("--temperature -1", "--temperature=-1"),
        ("--top-p 0", "--top-p=0.0: must be above 0 and at most 1"),
        ("--top-k 0", "--top-k=0: must be at least 1"),
        ("--max-tokens 0", "--max-tokens 0: must be at least 1"),
        ("--batch-size 0", "--batch-size 0: must be at least 1"),
        ("--stop=", "--stop: must not be empty"),
        ("--checkpoint step_9", "--checkpoint step_9: unknown; did you mean 'step_3'"),
        ("--device nowhere", "--device nowhere: cannot be used"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(run: Path, words: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        generate.main([str(run), "--prompt", "x", *words.split()])
    assert "\n" not in str(refusal.value)


def test_a_file_without_prompts_names_the_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(
        UserError,
        match=r"bad\.jsonl line 2: must be a JSON object with a text "
        r"`prompt`",
    ):
        generate.main([str(run), "--prompts", str(tmp_path / "bad.jsonl")])
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read"):
        generate.main([str(run), "--prompts", str(tmp_path / "gone.txt")])


def test_a_checkpoint_is_chosen_by_name_and_a_stride_sees_more(run: Path, capsys: Captured) -> None:
    by_name = said(evaluate.main, capsys, run, "--checkpoint", "step_2", "--json")
    assert by_name == said(evaluate.main, capsys, run / "checkpoints/step_2.ckpt", "--json")
    rows, dense, whole = (
        json.loads(said(evaluate.main, capsys, run, "--json", *words))["bpb"]
        for words in ((), ("--stride", 8), ("--stride", 32))
    )
    assert dense != rows and whole != dense
    for stride in ("0", "33"):
        with pytest.raises(UserError, match=f"--stride {stride}: must be"):
            evaluate.main([str(run), "--stride", stride])
