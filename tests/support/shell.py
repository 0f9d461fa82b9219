"""`train.py` and the commands as a user types them, and what they leave."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.plugin_event_accumulator import TENSORS, EventAccumulator

from tests.conftest import ROOT

SMALL = (
    "model=nano tokenizer=bytes data=text data.path=t.txt data.seq_len=32 data.batch_size=4 "
    "data.val_rows=4 callbacks=off trainer.max_steps=4 trainer.val_every=2 "
    "trainer.checkpoint_every=2 trainer.log_every=1"
)


SENTENCE = "the people of the town say to each other in the morning what they have seen at night"


Done = subprocess.CompletedProcess[str]


Shell = Callable[..., Done]


def environment() -> dict[str, str]:
    """Of a user's shell: nothing that the tests or an earlier run have set."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}


def write_text(folder: Path) -> None:
    words = SENTENCE.split()
    lines = [
        " ".join(words[(n * k) % len(words)] for k in range(1, 15)) + f" {n}" for n in range(800)
    ]
    (folder / "t.txt").write_text("\n".join(lines))


def command(line: str) -> list[str]:
    """What a line starts."""
    words = line.replace("SMALL", SMALL).split()
    return [
        sys.executable,
        *(str(ROOT / "train.py") if word == "train" else word for word in words),
    ]


def mistake(done: Done) -> str:
    """The one line of a user's mistake."""
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def tree(folder: Path) -> dict[str, int]:
    """All files below a folder, with when they were written."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def shown(run: Path) -> dict[str, list[tuple[int, str]]]:
    """All that TensorBoard shows of a run, tag by tag and step by step, but what the clock says."""
    events = EventAccumulator(str(run / "tb"), size_guidance={TENSORS: 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if not tag.startswith("speed/")]
    return {tag: [(one.step, str(one.tensor_proto)) for one in events.Tensors(tag)] for tag in tags}
