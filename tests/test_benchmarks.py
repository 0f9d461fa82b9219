"""The benchmarks run, compute what a run computes, and draw the right conclusions from lines."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import crossing
from benchmarks.bare import Bare
from benchmarks.crossing import DENSE, DESIGNS, Run, at, compared, missing
from benchmarks.report import markdown
from tests.conftest import NANO, ROOT

Line = crossing.Line


@pytest.mark.parametrize("parts", [(), ("balance=loss_free", "router/score=jitter")])
def test_the_bare_loop_trains_as_train_py_does(
    train: Callable[..., Path], text: Path, parts: tuple[str, ...]
) -> None:
    own = (*NANO, "trainer.max_steps=3", *parts)
    summary = json.loads((train(*parts, "trainer.max_steps=3") / "summary.json").read_text())
    bare = Bare(
        ["data=text", f"data.path={text}", f"data.cache_dir={text.parent / 'cache'}", *own],
        precision="32-true",
    )
    batches = bare.batches()
    for _ in range(3):
        bare.train_step(next(batches))
    assert bare.bits_per_byte() == pytest.approx(summary["val_bpb"], abs=1e-6)


def line(design: str, steps: int, seed: int, bpb: float) -> Line:
    return {"design": design, "overrides": [], "steps": steps, "seed": seed, "bpb": bpb}


def test_quality_between_two_runs_is_read_in_the_logarithm_of_the_steps() -> None:
    curve = {100: 3.0, 200: 2.0, 800: 1.0}
    assert at(curve, 100) == 3.0 and at(curve, 400) == pytest.approx(1.5)
    assert at(curve, 99) is None and at(curve, 801) is None


def test_a_mixture_is_compared_at_the_time_of_the_dense_model_seed_by_seed() -> None:
    dense = [
        line(DENSE, n, s, b + s) for n, b in ((100, 3.0), (200, 2.0), (400, 1.0)) for s in (0, 1)
    ]
    ours = [line("fine 8", n, s, b + s) for n, b in ((100, 2.5), (200, 0.8)) for s in (0, 1)]
    # the dense model makes 200 and 400 steps
    first, second = compared(dense + ours, "fine 8", cost=2.0)
    assert (first["steps"], first["seeds"], first["over_dense"]) == (100, 2, pytest.approx(0.5))
    assert second["over_dense"] == pytest.approx(-0.2) and second["interval"] == pytest.approx(0)
    assert 100 < crossing.crossing([first, second]) < 200
    assert crossing.crossing([first]) is None
    assert crossing.crossing([second]) == 200


def test_a_race_goes_on_where_its_file_ends(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    runs = [Run("deepseek", (), 64, seed) for seed in (0, 1)]
    assert missing(runs, file) == runs
    crossing.add({**runs[0]._asdict(), "bpb": 2.0}, file)
    assert missing(runs, file) == runs[1:]


def test_the_committed_lines_are_of_known_designs_and_overrides() -> None:
    lines = crossing.done(crossing.FILE)
    assert {each["design"] for each in lines} <= DESIGNS.keys()
    assert all(each["bpb"] > 0 and each["device"] for each in lines)


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
