"""What every benchmark has in common: its command line, its table, its JSON and its picture."""

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.timing import table

# "what" is compared first, and the "ratio" to what it is compared with among the others
Row = dict[str, Any]
# whether it is to be quick, and the device
Run = Callable[[bool, str], list[Row]]


def command(name: str, run: Run) -> None:
    """`python -m benchmarks.NAME [--quick] [--device cuda] [--out FOLDER]`."""
    parser = argparse.ArgumentParser(
        description=inspect.getdoc(inspect.getmodule(run)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="few steps: shows that it runs, not how fast"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="folder for NAME.json and NAME.png")
    asked = parser.parse_args()
    rows = run(asked.quick, asked.device)
    print(table(rows))
    if asked.out:
        write(name, rows, asked.out)


def write(name: str, rows: Sequence[Row], folder: Path) -> None:
    """NAME.json and NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    bars = axes.barh(
        [str(row["what"]) for row in rows], [row["ratio"] for row in rows], color="#4c72b0"
    )
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set(title=name, xlabel="ratio")
    figure.savefig(folder / f"{name}.png", dpi=100)
    pyplot.close(figure)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for a page."""
    cells = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *([_cell(v) for v in row.values()] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
