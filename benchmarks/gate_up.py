"""Compare Muon with gate and up projection orthogonalized apart or together, by expert width.

    python -m benchmarks.gate_up RESULTS.jsonl [--seeds 5] [--steps 160 512] [--jobs 2]    # train;
        resumable
    python -m benchmarks.gate_up RESULTS.jsonl --report                                     # table
        of finished trials

Three layouts of size `race/xs` with equal expert parameters and experts of width 32, 128 and 512.
Differences are paired by seed: the same initial weights and the same rows in the same order. Each
trial is a separate process with one thread in float32, with the learning rate of `race/xs` and a
complete schedule of its length.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from app.races.statistics import interval
from app.races.tables import told

LAYOUTS = {
    32: ["experts=fine_grained", "experts.num_experts=16", "experts.segments=4"],  # 8 of 64
    128: ["experts=coarse", "experts.num_experts=16"],  # 2 of 16
    512: ["experts=coarse", "experts.num_experts=4", "experts.hidden_dim=512"],  # 2 of 4
}
RULES = ("apart", "together")
TRAIN = Path(__file__).parents[1] / "train.py"


class Trial(NamedTuple):
    """A training run of the comparison."""

    seed: int
    steps: int
    width: int
    rule: str

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"gate_up_{self.width}_{self.rule}_{self.steps}_{self.seed}"

    def overrides(self) -> list[str]:
        """Overrides of `train.py`."""
        return [
            "experiment=race/xs",
            *LAYOUTS[self.width],
            "balance=[aux]",
            f"optimizer.gate_up={self.rule}",
            f"trainer.max_steps={self.steps}",
            f"trainer.val_every={self.steps}",
            f"seed={self.seed}",
            f"run={self.name}",
            "resume=true",
            "callbacks=race",
            "logger=csv",
        ]


def run(trial: Trial) -> dict[str, object]:
    """Train, and return the trial with its bits per byte."""
    subprocess.run(
        [sys.executable, str(TRAIN), *trial.overrides()], check=True, stdout=subprocess.DEVNULL
    )
    folder = Path("runs", trial.name)
    bpb = json.loads((folder / "summary.json").read_text())["val_bpb"]
    shutil.rmtree(folder)
    return {**trial._asdict(), "bpb": bpb}


def read(results: Path) -> list[dict[str, object]]:
    """Return the rows that have been written so far."""
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def train(results: Path, seeds: int, steps: list[int], jobs: int) -> None:
    """Run what the results lack, and append each row when it is there."""
    done = {tuple(row[key] for key in Trial._fields) for row in read(results)}
    trials = [Trial(*values) for values in product(range(seeds), steps, LAYOUTS, RULES)]
    lock = Lock()

    def work(trial: Trial) -> None:
        row = run(trial)
        with lock, results.open("a") as file:
            file.write(json.dumps(row) + "\n")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, [trial for trial in trials if trial not in done]))


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table:
    apart minus together, for each width and length, with 95 % intervals.
    """
    values = {tuple(row[key] for key in Trial._fields): row["bpb"] for row in rows}
    steps = sorted({row["steps"] for row in rows})
    yield "| width | steps | seeds | apart | together | apart - together |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for length in steps:
        all_differences = []
        for width in LAYOUTS:
            seeds = [
                seed
                for seed in range(100)
                if all((seed, length, width, rule) in values for rule in RULES)
            ]
            apart, together = (
                [values[seed, length, width, rule] for seed in seeds] for rule in RULES
            )
            differences = [a - b for a, b in zip(apart, together, strict=True)]
            all_differences += differences
            if seeds:
                shown = told(interval(differences), 4, sign=True)
                means = f"{interval(apart).mean:.4f} | {interval(together).mean:.4f}"
                yield f"| {width} | {length} | {len(seeds)} | {means} | {shown} |"
        if all_differences:
            shown = told(interval(all_differences), 4, sign=True)
            yield f"| all | {length} | {len(all_differences)} | | | {shown} |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate_up", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", type=Path, help="JSON lines, one for each run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[160, 512])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.report:
        train(options.results, options.seeds, options.steps, options.jobs)
    print(*table(read(options.results)), sep="\n")


if __name__ == "__main__":
    main()
