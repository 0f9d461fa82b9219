"""A report as files: one page that needs no server and no network, its pictures as PNG,
its numbers as JSON and CSV.
"""

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.analysis.experiments.suite import EXPERIMENTS
from app.analysis.pairing import paired, same_text
from app.training.files import replace_files
from app.training.metrics import STATISTICS

PAGE = Path(__file__).with_suffix(".html")
# multiple of 1/E that has the darkest colour
TOP = 3.0
# what is no line of the CSV
UNTABLED = ("samples", "config", "curves")
# of one run, as `measure` gives them
Numbers = Mapping[str, Any]


def write_report(folder: Path, reports: Sequence[Numbers]) -> Path:
    """Writes the report on one run, or on two side by side, into a folder; returns the page."""
    images = dict(_images(reports))
    text = json.dumps(_shown(reports, images), ensure_ascii=False).replace("<", "\\u003c")
    files: dict[str, str | bytes] = {f"{name}.png": png for name, png in images.items()}
    files["report.json"] = json.dumps(reports[0] if len(reports) == 1 else reports, indent=1)
    files["report.csv"] = _comma_separated(reports)
    files["index.html"] = PAGE.read_text(encoding="utf-8").replace("DATA", text, 1)
    replace_files(folder, files, stale="*.png")
    return folder / "index.html"


def _shown(reports: Sequence[Numbers], images: Mapping[str, bytes]) -> dict[str, object]:
    """What the page's script reads."""
    encoded = {}
    for name, png in images.items():
        encoded[name] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    runs = []
    for report in reports:
        runs.append({name: value for name, value in report.items() if name != "curves"})
    experiments = []
    for name, experiment in EXPERIMENTS.items():
        if any(name in report["experiments"] for report in reports):
            files = [_file(name, number, reports) for number in range(len(reports))]
            experiments.append(
                {
                    "title": experiment.TITLE,
                    "reading": experiment.READING,
                    # A run may have no picture of an experiment that the other one has.
                    "images": [encoded.get(file) for file in files],
                }
            )
    return {
        "runs": runs,
        "pairs": _pairs(reports),
        "top": TOP,
        "words": STATISTICS,
        "curves": encoded.get("curves"),
        "experiments": experiments,
    }


def _pairs(reports: Sequence[Numbers]) -> list[list[int | None]] | None:
    """Which experts of two runs are partners; None for one run, or two that read other text."""
    if len(reports) < 2:
        return None
    one, other = reports
    if not same_text(one["samples"], other["samples"]):
        return None
    return paired(one["samples"], other["samples"], (one["num_experts"], other["num_experts"]))


def _file(name: str, number: int, reports: Sequence[Numbers]) -> str:
    return name if len(reports) == 1 else f"{name}_{number + 1}"


def _images(reports: Sequence[Numbers]) -> Iterator[tuple[str, bytes]]:
    if any(report["curves"] for report in reports):
        yield "curves", _png(lambda figure: _curves(figure, reports))
    for number, report in enumerate(reports):
        for name, found in report["experiments"].items():
            draw = EXPERIMENTS[name].draw
            yield (
                _file(name, number, reports),
                _png(lambda figure, draw=draw, found=found: draw(figure, found)),
            )


def _curves(figure: Figure, reports: Sequence[Numbers]) -> None:
    """What was logged, over the steps; the runs in one picture."""
    tags = list(dict.fromkeys(tag for report in reports for tag in report["curves"]))
    all_axes = figure.subplots(1, len(tags), squeeze=False)[0]
    for axes, tag in zip(all_axes, tags, strict=True):
        for report in reports:
            if tag in report["curves"]:
                steps, values = zip(*report["curves"][tag], strict=True)
                axes.plot(steps, values, label=Path(report["run"]).name, marker=".")
        axes.set(title=tag, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def _png(draw: Any) -> bytes:
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    draw(figure)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _comma_separated(reports: Sequence[Numbers]) -> str:
    """A line for each number but those of single tokens:
    its place in report.json, and its value in each run.
    """
    columns = []
    for report in reports:
        tabled = {name: value for name, value in report.items() if name not in UNTABLED}
        columns.append(dict(_flat(tabled)))
    places = dict.fromkeys(place for column in columns for place in column)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("place", *(report["run"] for report in reports)))
    for place in places:
        writer.writerow((place, *(column.get(place, "") for column in columns)))
    return out.getvalue()


def _flat(value: object, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for name, each in inner:
            yield from _flat(each, f"{place}.{name}".removeprefix("."))
    elif isinstance(value, int | float):
        yield place, value
