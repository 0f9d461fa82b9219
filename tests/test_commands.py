"""Every command that README and docs print is run as it stands, in a fresh process,
with only its sizes cut down.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parent.parent
CUT = (
    "model=nano data.seq_len=32 data.batch_size=4 data.micro_batch_size=null data.val_rows=2 "
    "trainer.max_steps=2 trainer.precision=32-true"
)
TEXT = ["data=text", "data.path=book.txt", "tokenizer=bytes"]
# what needs a GPU or several machines, holds words that stand for others, or writes the pages
# themselves
ELSEWHERE = ("trainer=gpu", "--nnodes", "srun", "OVERRIDES", "FILE", "python -m app.pages")


def commands(page: str) -> list[str]:
    """The lines of blocks and the words in backticks that start one of our programs."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    words = re.findall(
        r"`(python [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    found = [
        line
        for line in [*lines, *words]
        if re.match(
            r"(python (train\.py|-m "
            r"app\.)|torchrun )",
            line,
        )
    ]
    return [
        shlex.join(shlex.split(line, comments=True))
        for line in found
        if not any(no in line for no in ELSEWHERE)
    ]


def cut_down(command: str) -> list[str]:
    """The command with sizes for a test behind it, and without what only chooses a large text."""
    program, *words = shlex.split(command)
    start = (
        [sys.executable] if program == "python" else [sys.executable, "-m", "torch.distributed.run"]
    )
    places = {"train.py": str(ROOT / "train.py")}
    words = [
        places.get(word, re.sub(r"^--nproc-per-node=\d+", "--nproc-per-node=2", word))
        for word in words
    ]
    if "train.py" not in command:
        return [*start, *words]
    several = re.search(r"trainer=(ddp|fsdp|ep)", command)
    more = ["trainer.devices=2", "trainer.accelerator=cpu"] if several else []
    more += ["trainer.ep_size=2"] if "trainer=ep" in command else []
    return [*start, *words, *CUT.split(), *more, *([] if "data=" in command else TEXT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user types them: with a book, and a run of the name that the pages use."""
    place = tmp_path_factory.mktemp("user")
    (place / "book.txt").write_text(
        (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    )
    assert type_in(place, "python train.py run=NAME").returncode == 0
    return place


def type_in(folder: Path, command: str) -> "subprocess.CompletedProcess[str]":
    shell = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
        "PYTHONPATH": str(ROOT)
    }
    return subprocess.run(
        cut_down(command), cwd=folder, env=shell, capture_output=True, text=True, timeout=250
    )


@pytest.mark.parametrize(
    "command",
    dict.fromkeys(line for page in ("README.md", "docs/scale.md") for line in commands(page)),
)
def test_a_printed_command_runs(folder: Path, command: str) -> None:
    # the fixture has run it
    if command == "python train.py run=NAME":
        command += "_again"
    done = type_in(folder, command)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_pages_have_commands() -> None:
    assert len(commands("README.md")) >= 12
    assert len(commands("docs/scale.md")) >= 4
