"""The benchmarks run, and compute what a run computes."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.training.checkpoints import read_checkpoint
from benchmarks.bare import Bare
from benchmarks.report import markdown
from tests.conftest import NANO, ROOT


@pytest.mark.parametrize("parts", [(), ("balance=loss_free", "router/score=jitter")])
def test_the_bare_loop_trains_as_train_py_does(
    train: Callable[..., Path], text: Path, parts: tuple[str, ...]
) -> None:
    own = (*NANO, "trainer.max_steps=3", *parts)
    trained = train(*parts, "trainer.max_steps=3")
    bare = Bare(
        ["data=text", f"data.path={text}", f"data.cache_dir={text.parent / 'cache'}", *own],
        precision="32-true",
    )
    batches = bare.batches()
    for _ in range(3):
        bare.train_step(next(batches))
    weights = read_checkpoint(trained / "checkpoints/step_3.ckpt")["state_dict"]
    for name, value in bare.model.state_dict().items():
        torch.testing.assert_close(value, weights[f"model.{name}"], atol=1e-6, rtol=0)


def test_a_table_for_a_page() -> None:
    assert markdown([{"what": "a", "ratio": 1.0}]) == (
        "| what | ratio |\n| --- | --- |\n| a | 1.000 |"
    )


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", ["layer", "growth", "step", "memory", "data", "startup", "loop", "routers"]
)
def test_a_benchmark_runs_and_leaves_json_and_a_picture(tmp_path: Path, name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__
    words = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / f"{name}.json").read_text())
    assert rows and all(row["what"] and row["ratio"] > 0 for row in rows)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
