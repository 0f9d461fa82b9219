"""The result of a race as pictures: differences, curves,
quality against balance and against speed.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.races.race import Race
from app.races.tables import ranked

NOT_TIMED = "not timed yet:\npython -m benchmarks.race NAME\nmeasures the seconds of a step"
Row = Mapping[str, Any]
COLORS = {
    "better": "tab:green",
    "worse": "tab:red",
    "equivalent": "tab:blue",
    "cannot tell": "0.5",
    "not finished": "0.8",
}


def pictures(race: Race, size: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the figures of one size as PNG, by name."""
    rows = [row for row in ranked(race, size["rows"]) if row["seeds"]]
    drawn: dict[str, Callable[[Figure, Race, Sequence[Row]], None]] = {
        "differences": forest,
        "curves": curves,
        "balance": balance,
        "frontier": frontier,
    }
    return {name: _png(draw, race, rows) for name, draw in drawn.items()}


def forest(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Paired differences with their intervals; the margin is grey."""
    axes = figure.subplots()
    others = [row for row in reversed(rows) if "difference" in row]
    axes.axvspan(-race.margin, race.margin, color="0.92")
    axes.axvline(0, color="0.4", linewidth=0.8)
    for place, row in enumerate(others):
        value = row["difference"][race.measure]
        verdict = row["verdict"]
        axes.errorbar(
            value["mean"], place, xerr=value["half"], fmt="o", color=COLORS[verdict], capsize=3
        )
    _say_if_empty(axes, others, "no contestant has ended on the seeds of the comparison")
    axes.set_yticks(
        range(len(others)), [f"{row['contestant']}: {row['verdict']}" for row in others]
    )
    axes.set(xlabel=f"{race.measure} minus that of {race.baseline} (left is better)")


def curves(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Held-out bits per byte over tokens, FLOPs and, where it is measured, time."""
    axes = figure.subplots(1, 3, sharey=True)
    for row, color in zip(rows, _colors(len(rows)), strict=True):
        tokens, bpb = zip(*row["curve"], strict=True)
        scales = (1.0, row["flops"], row["seconds_per_token"])
        for each, scale in zip(axes, scales, strict=True):
            if scale:
                each.plot(
                    [count * scale for count in tokens],
                    bpb,
                    color=color,
                    label=row["contestant"],
                    marker=".",
                )
    for each, label in zip(axes, ("training tokens", "FLOPs", "seconds of training"), strict=True):
        each.set(xlabel=label)
        each.grid(alpha=0.3)
        _say_if_empty(each, each.lines, NOT_TIMED if rows else "no run has ended")
    axes[0].set(ylabel="bits per byte")
    if rows:
        axes[0].legend(fontsize=6)


def balance(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Quality against the evenness of the load."""
    axes = figure.subplots()
    points = [(row["routing"]["maxvio"], row) for row in rows if row["routing"]]
    _scatter(axes, race, points)
    _say_if_empty(axes, points, "no contestant with routers has ended")
    axes.set(xlabel="MaxVio (0: even load)", ylabel=race.measure)


def frontier(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Quality against speed; the line joins those that nobody beats in both."""
    axes = figure.subplots()
    points = [(1 / row["seconds_per_token"], row) for row in rows if row["seconds_per_token"]]
    _scatter(axes, race, points)
    best = [(x, y) for x, y in ((x, row[race.measure]["mean"]) for x, row in points)]
    front = sorted((x, y) for x, y in best if not any(a > x and b < y for a, b in best))
    if front:
        axes.plot(*zip(*front, strict=True), color="0.6", zorder=0)
    _say_if_empty(axes, front, NOT_TIMED)
    axes.set(xlabel="training tokens per second", ylabel=race.measure)


def _say_if_empty(axes: Axes, shown: Sequence[Any], missing: str) -> None:
    """Write a note into an empty plot about the missing data."""
    if not shown:
        axes.text(
            0.5,
            0.5,
            missing,
            ha="center",
            va="center",
            transform=axes.transAxes,
            color="0.4",
            wrap=True,
        )


def _scatter(axes: Axes, race: Race, points: Sequence[tuple[float, Row]]) -> None:
    for x, row in points:
        value = row[race.measure]
        axes.errorbar(x, value["mean"], yerr=value["half"], fmt="o", color="tab:blue", capsize=2)
        axes.annotate(
            row["contestant"],
            (x, value["mean"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    axes.grid(alpha=0.3)


def _colors(number: int) -> list[Any]:
    return [colormaps["turbo"](place / max(1, number - 1)) for place in range(number)]


def _png(
    draw: Callable[[Figure, Race, Sequence[Row]], None], race: Race, rows: Sequence[Row]
) -> bytes:
    wide = 12 if draw is curves else 7
    figure = Figure(figsize=(wide, max(3.5, 0.28 * len(rows))), dpi=100, layout="constrained")
    draw(figure, race, rows)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()
