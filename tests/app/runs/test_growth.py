"""What a long run holds stays what it is."""

import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from threading import Thread
from time import sleep

import pytest

from tests.conftest import NANO, ROOT

pytestmark = pytest.mark.nightly

STEPS = 2000
WARM = 400


@pytest.mark.timeout(1200)
def test_two_thousand_steps_with_all_callbacks_and_validations_need_no_more_memory(
    text: Path, tmp_path: Path
) -> None:
    words = [
        *NANO,
        "data=text",
        f"data.path={text}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "callbacks=full",
    ]
    words += [f"trainer.max_steps={STEPS}", "trainer.val_every=50", "trainer.checkpoint_every=500"]
    # what it holds is what it uses
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    step = [0]
    seen = list[tuple[int, int]]()

    def watch() -> None:
        while run.poll() is None:
            seen.append((step[0], resident(run.pid)))
            sleep(0.02)

    watching = Thread(target=watch)
    watching.start()
    assert run.stdout is not None
    for line in run.stdout:
        if found := re.match(rf"step (\d+)/{STEPS} loss", line):
            step[0] = int(found[1])
    watching.join()
    assert run.wait() == 0
    middle = (WARM + STEPS) // 2
    early = median(held for at, held in seen if WARM <= at < middle)
    late = median(held for at, held in seen if middle <= at)
    assert late < 1.01 * early, (early, late)


def resident(pid: int) -> int:
    """KB of a process; 0 when it has ended."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0
