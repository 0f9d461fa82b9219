"""After which training time is a mixture ahead of the dense model? `python -m benchmarks.crossing
--help`

    race     trains every design for every number of steps and seed that the file does not have yet,
             and adds a line
    report   what the lines say: bits per byte at equal time, the paired difference with its
             interval, the crossing

Time is measured step time: the median of steps that all designs take in turns in this process,
times the number of steps. So other work on the machine cannot decide the race, and the lines may
come from any other machine. For the time of a run of the mixture, the dense model's quality is read
off the line through its own two nearest runs, straight in the logarithm of the steps. The schedule
ends with the run, so every number of steps is a run.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

import torch
from scipy import stats

from benchmarks.bare import Bare
from benchmarks.timing import medians, table

DENSE = "dense"
# all of the same active FLOPs, but for the router
DESIGNS: dict[str, tuple[str, ...]] = {
    DENSE: ("experts=dense", "experts.hidden_dim=1024"),
    "fine 8": (),
    "fine 16": ("experts.num_experts=8",),
    "fine 32": ("experts.num_experts=16",),
    "deepseek": ("experts=deepseek",),
    "deepseek 8": ("experts=deepseek", "experts.num_experts=5"),
    "deepseek 32": ("experts=deepseek", "experts.num_experts=17"),
    "deepseek 64": ("experts=deepseek", "experts.num_experts=33"),
    "segments 4": ("experts=deepseek", "experts.segments=4", "experts.num_experts=9"),
    "coarse 8": ("experts=coarse",),
    "coarse 16": ("experts=coarse", "experts.num_experts=16"),
    "coarse 32": ("experts=coarse", "experts.num_experts=32"),
    "switch 8": (
        "experts=coarse",
        "experts.top_k=1",
        "experts.hidden_dim=1024",
        "router.weigh.normalize=false",
    ),
    "residual": ("experts=residual",),
    "latent": ("experts=latent", "experts.hidden_dim=490"),
    "fine 16, half": (
        "experts.num_experts=8",
        "model.hidden_dim=1024",
        "experts.hidden_dim=512",
        "model.moe_every=2",
    ),
    "dense first": (
        "experts=deepseek",
        "model.hidden_dim=1024",
        "experts.hidden_dim=512",
        "model.first_dense=1",
    ),
}
FILE = Path(__file__).parent / "results" / "crossing.jsonl"
STEPS = tuple(64 * 2**i for i in range(6))
Line = dict[str, Any]


class Run(NamedTuple):
    """One training; two runs of equal values are the same."""

    design: str
    overrides: tuple[str, ...]
    steps: int
    seed: int

    def words(self) -> list[str]:
        """All overrides."""
        own = [f"trainer.max_steps={self.steps}", f"seed={self.seed}"]
        return [*DESIGNS[self.design], *self.overrides, *own]


def done(file: Path) -> list[Line]:
    """The lines so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def missing(runs: Iterable[Run], file: Path) -> list[Run]:
    """The runs that the file does not have."""
    there = {
        (line["design"], tuple(line["overrides"]), line["steps"], line["seed"])
        for line in done(file)
    }
    return [run for run in runs if tuple(run) not in there]


def race(run: Run, device: str, precision: str | None) -> Line:
    """Trains; the line that tells about it."""
    bare = Bare(run.words(), device, precision)
    batches = bare.batches()
    start = perf_counter()
    for _ in range(run.steps):
        loss = bare.train_step(next(batches))
    bpb = bare.bits_per_byte()
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        **run._asdict(),
        "bpb": bpb,
        "loss": float(loss),
        "device": where,
        "bf16": bare.low,
        "seconds": perf_counter() - start,
    }


def add(line: Line, file: Path) -> None:
    """Appends a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def step_seconds(
    designs: Sequence[str], overrides: Sequence[str], precision: str | None
) -> dict[str, float]:
    """Median time of a step of each design on the CPU; they take turns."""
    bares = {
        design: Bare([*DESIGNS[design], *overrides], precision=precision) for design in designs
    }
    works = {design: partial(next_step, bare, bare.batches()) for design, bare in bares.items()}
    return medians(works, 3, 20)


def next_step(bare: Bare, batches: Iterator[dict[str, torch.Tensor]]) -> None:
    """Trains on the next batch."""
    bare.train_step(next(batches))


def at(curve: dict[int, float], steps: float) -> float | None:
    """Quality after so many steps, between two measured numbers of steps; None outside of them."""
    known = sorted(curve)
    for low, high in pairwise(known):
        if low <= steps <= high:
            share = math.log(steps / low) / math.log(high / low)
            return curve[low] + share * (curve[high] - curve[low])
    return None


def compared(lines: Sequence[Line], design: str, cost: float) -> list[Line]:
    """Of a design whose step takes `cost` of the dense model's:
    one line for each number of steps, over the seeds.
    """
    curves: dict[tuple[str, int], dict[int, float]] = {}
    for line in lines:
        curves.setdefault((line["design"], line["seed"]), {})[line["steps"]] = line["bpb"]
    rows = []
    for steps in sorted({line["steps"] for line in lines}):
        seeds = [seed for name, seed in curves if name == design and steps in curves[name, seed]]
        both = [
            (curves[design, s][steps], at(curves.get((DENSE, s), {}), steps * cost)) for s in seeds
        ]
        paired = [ours - theirs for ours, theirs in both if theirs is not None]
        if len(paired) > 1:
            wide = stats.sem(paired) * stats.t.ppf(0.975, len(paired) - 1)
            rows.append(
                {
                    "design": design,
                    "steps": steps,
                    "seeds": len(paired),
                    "bpb": fmean(o for o, _ in both),
                    "over_dense": fmean(paired),
                    "interval": float(wide),
                }
            )
    return rows


def crossing(rows: Sequence[Line]) -> float | None:
    """The number of steps from which on the mean difference is below 0, between measured ones;
    None: not reached.
    """
    if not rows or rows[-1]["over_dense"] >= 0:
        return None
    last = max((i for i, row in enumerate(rows) if row["over_dense"] >= 0), default=None)
    if last is None:
        return float(rows[0]["steps"])
    low = rows[last]
    high = rows[last + 1]
    share = low["over_dense"] / (low["over_dense"] - high["over_dense"])
    return float(low["steps"] * (high["steps"] / low["steps"]) ** share)


def report(file: Path, overrides: tuple[str, ...], precision: str | None) -> None:
    """Prints a table for every design that has lines."""
    lines = [line for line in done(file) if tuple(line["overrides"]) == overrides]
    designs = [design for design in DESIGNS if any(line["design"] == design for line in lines)]
    seconds = step_seconds(designs, overrides, precision)
    for design in designs[1:]:
        cost = seconds[design] / seconds[DENSE]
        rows = compared(lines, design, cost)
        if rows:
            minutes = [{**row, "minutes": row["steps"] * seconds[design] / 60} for row in rows]
            print(
                f"\n{design}: a step takes {cost:.3f} of the dense model's, {seconds[design]:.3f} s"
            )
            print(table(minutes))
            where = crossing(rows)
            reached = (
                (f"after {where:.0f} steps, {where * seconds[design] / 60:.1f} minutes")
                if where
                else "not reached"
            )
            print(f"crossing {reached}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["race", "report"])
    parser.add_argument(
        "--designs", nargs="+", default=[DENSE, "fine 8"], choices=DESIGNS, metavar="NAME"
    )
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="of all designs, such as optimizer=adamw"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], help="default: that of the device"
    )
    parser.add_argument("--file", type=Path, default=FILE)
    asked = parser.parse_args()
    overrides = tuple(asked.overrides)
    if asked.what == "report":
        report(asked.file, overrides, asked.precision)
        return
    runs = [
        Run(d, overrides, steps, s)
        for steps in asked.steps
        for s in range(asked.seeds)
        for d in asked.designs
    ]
    for run in missing(runs, asked.file):
        line = race(run, asked.device, asked.precision)
        add(line, asked.file)
        print(
            f"{run.design}, {run.steps} steps, seed {run.seed}: {line['bpb']:.4f} bits per byte",
            flush=True,
        )


if __name__ == "__main__":
    main()
