"""Commands on a terminal, a pipe and a disk that are not as one wishes:
one line, and what was there stays.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import evaluate, generate, report, skill
from app.registry import UserError
from tests.conftest import ROOT
from tests.support.shell import SMALL, environment, write_text

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    write_text(folder)
    os.chdir(folder)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SMALL.split(), "run=one"], env=environment()
    )
    assert done.returncode == 0
    yield folder
    os.chdir(before)


def command(*words: str, **more: object) -> "subprocess.Popen[bytes]":
    env = environment() | {"PYTHONPATH": str(ROOT), **more.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_a_reader_that_goes_away_ends_a_command_quietly(place: Path) -> None:
    process = command("app.generate", "runs/one", "--prompt", "the people", "--max-tokens", "2000")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_a_letter_shows_its_number(place: Path, encoding: str) -> None:
    process = command(
        "app.generate",
        "runs/one",
        "--prompt",
        "naïve 日本",
        "--max-tokens",
        "1",
        env={"PYTHONIOENCODING": encoding},
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.decode(encoding).startswith(
        "naïve 日本".encode(encoding, "backslashreplace").decode(encoding)
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "\ud800"], "--prompt: holds half of a surrogate pair"),
        (
            ["--prompt", "a", "--seed", str(2**70)],
            f"--seed {2**70}: must be a whole number in 0..2**63-1",
        ),
        (["--prompt", "a", "--seed", "-1"], "--seed -1: must be"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature"),
        (
            ["--prompts", "half.jsonl"],
            "half.jsonl line 1: must be a JSON object with a text `prompt`",
        ),
        (
            ["--prompts", "deep.jsonl"],
            "deep.jsonl line 1: must be a JSON object with a text `prompt`",
        ),
    ],
)
def test_an_odd_argument_of_generate_is_one_line(place: Path, words: list[str], said: str) -> None:
    Path("half.jsonl").write_text('{"prompt": "\\ud800"}')
    Path("deep.jsonl").write_text('{"prompt": ' + "[" * 50_000)
    with pytest.raises(UserError) as refusal:
        generate.main(["runs/one", *words])
    assert said in str(refusal.value)


def test_a_temperature_next_to_nothing_takes_the_likeliest(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for temperature in ("0", "1e-300", "1e-44"):
        generate.main(
            ["runs/one", "--prompt", "the", "--max-tokens", "9", "--temperature", temperature]
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_of_prompts_ends_with_a_line_feed_only(
    place: Path, capsys: pytest.CaptureFixture[str], separator: str
) -> None:
    text = f"one{separator}two"
    Path("p.txt").write_text(f"{text}\nthree\n", newline="")
    Path("p.jsonl").write_text(
        json.dumps({"prompt": text}, ensure_ascii=False) + '\n{"prompt": "three"}\n', newline=""
    )
    for name in ("p.txt", "p.jsonl"):
        if name == "p.jsonl" and separator < " ":
            # JSON has no such letters in a text
            continue
        generate.main(["runs/one", "--prompts", name, "--max-tokens", "1"])
        found = [
            json.loads(line)["prompt"]
            for line in capsys.readouterr().out.removesuffix("\n").split("\n")
        ]
        assert found == [text, "three"]


def test_pairs_that_are_no_text_are_refused(place: Path) -> None:
    for bad in ('"\\ud800"', "3", "null"):
        Path("pairs.jsonl").write_text(f'{{"sentence_good": "a", "sentence_bad": {bad}}}\n')
        with pytest.raises(UserError, match=r"pairs.jsonl:1: is no object"):
            evaluate.main(["runs/one", "--pairs", "pairs.jsonl"])


@pytest.fixture
def full(place: Path) -> Iterator[Path]:
    """The run on a file system without room."""
    disk = place / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    shutil.copytree(place / "runs/one", disk / "one")
    yield disk / "one"
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(folder: Path) -> None:
    (folder.parent / "filler").write_bytes(b"x" * (shutil.disk_usage(folder).free - 4096))


def read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder.parent)], check=True)


@pytest.mark.parametrize("state", [fill, read_only])
def test_a_report_that_cannot_be_written_leaves_the_one_before(full: Path, state: object) -> None:
    report.main([str(full), "--quick", "--rows", "2"])
    before = {path.name: path.read_bytes() for path in (full / "report").iterdir()}
    assert len(before) >= 4
    state(full)  # type: ignore[operator]
    process = command("app.report", str(full), "--quick", "--rows", "1")
    _, err = process.communicate(timeout=100)
    assert (
        process.returncode == 2
        and err.decode().count("\n") == 1
        and ("cannot be written") in err.decode()
    )
    assert {path.name: path.read_bytes() for path in (full / "report").iterdir()} == before


def test_a_skill_on_a_disk_that_cannot_be_written_stays(full: Path) -> None:
    from app.model.skills import Skill
    from app.runs.library import write_skill

    file = full / "skills/one.safetensors"
    write_skill(file, Skill({}, {"name": "one"}))
    read_only(full)
    process = command("app.skill", "remove", str(full), "one")
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 2
        and err.decode().count("\n") == 1
        and ("cannot be written") in err.decode()
    )
    assert file.exists()


def test_a_report_whose_folder_is_a_file_is_one_line(place: Path) -> None:
    run = Path(shutil.copytree("runs/one", "runs/two", dirs_exist_ok=True))
    (run / "report").write_text("a file of mine")
    process = command("app.report", str(run), "--quick", "--rows", "1")
    _, err = process.communicate(timeout=100)
    assert (
        process.returncode == 2
        and err.decode().count("\n") == 1
        and "runs/two/report" in err.decode()
    )
    assert (run / "report").read_text() == "a file of mine"


def test_a_study_whose_cache_is_a_file_is_one_line(place: Path) -> None:
    shutil.rmtree(".cache")
    Path(".cache").write_text("a file of mine")
    process = command("app.race", "race=size", "sizes=[xs]")
    _, err = process.communicate(timeout=100)
    Path(".cache").unlink()
    assert (
        process.returncode == 2
        and "Traceback" not in err.decode()
        and ".cache" in err.decode().splitlines()[-1]
    )


def test_the_words_of_a_skill_are_removed_once(place: Path) -> None:
    with pytest.raises(UserError, match="skill x: unknown"):
        skill.main(["remove", "runs/one", "x", "x"])
