"""The result of a race as pictures: differences, curves,
quality against balance and against speed.
"""

import io
from collections.abc import Callable, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.races.race import Race
from app.races.result import Means, Row, SizeResult
from app.races.tables import ranked

NOT_TIMED = "not timed yet:\npython -m benchmarks.race NAME\nmeasures the seconds of a step"
COLORS = {
    "better": "tab:green",
    "worse": "tab:red",
    "equivalent": "tab:blue",
    "cannot tell": "0.5",
    "not finished": "0.8",
}


def pictures(race: Race, size: SizeResult) -> dict[str, bytes]:
    """Return the figures of one size as PNG, by name."""
    rows = [row for row in ranked(race, size.rows) if row.means is not None]
    drawn: dict[str, Callable[[Figure, Race, Sequence[Row]], None]] = {
        "differences": forest,
        "curves": curves,
        "balance": balance,
        "frontier": frontier,
    }
    return {name: _png(draw, race, rows) for name, draw in drawn.items()}


def forest(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Draw paired differences with their intervals; the margin is grey."""
    axes = figure.subplots()
    axes.axvspan(-race.margin, race.margin, color="0.92")
    axes.axvline(0, color="0.4", linewidth=0.8)
    labels: list[str] = []
    # The best is at the top.
    for row in reversed(rows):
        if row.difference is None:
            continue
        value = row.difference.of(race.measure)
        color = COLORS[row.difference.verdict]
        axes.errorbar(value.mean, len(labels), xerr=value.half, fmt="o", color=color, capsize=3)
        labels.append(f"{row.contestant}: {row.difference.verdict}")
    _say_if_empty(axes, labels, "no contestant has ended on the seeds of the comparison")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel=f"{race.measure} minus that of {race.baseline} (left is better)")


def curves(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Draw held-out bits per byte over tokens, FLOPs and, where it is measured, time."""
    over_tokens, over_flops, over_seconds = figure.subplots(1, 3, sharey=True)
    for row, color in zip(rows, _colors(len(rows)), strict=True):
        means = _means(row)
        tokens, bpb = zip(*means.curve, strict=True)
        scales = [(over_tokens, 1.0), (over_flops, means.flops)]
        if means.seconds_per_token:
            scales.append((over_seconds, means.seconds_per_token))
        for axes, scale in scales:
            scaled = [count * scale for count in tokens]
            axes.plot(scaled, bpb, color=color, label=row.contestant, marker=".")
    for axes, label in (
        (over_tokens, "training tokens"),
        (over_flops, "FLOPs"),
        (over_seconds, "seconds of training"),
    ):
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
        _say_if_empty(axes, axes.lines, NOT_TIMED if rows else "no run has ended")
    over_tokens.set(ylabel="bits per byte")
    if rows:
        over_tokens.legend(fontsize=6)


def balance(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Draw quality against the evenness of the load."""
    axes = figure.subplots()
    points = []
    for row in rows:
        routing = _means(row).routing
        if routing:
            points.append((routing["maxvio"], row))
    _scatter(axes, race, points)
    _say_if_empty(axes, points, "no contestant with routers has ended")
    axes.set(xlabel="MaxVio (0: even load)", ylabel=race.measure)


def frontier(figure: Figure, race: Race, rows: Sequence[Row]) -> None:
    """Draw quality against speed; a line joins those that nobody beats in both."""
    axes = figure.subplots()
    points = []
    for row in rows:
        seconds = _means(row).seconds_per_token
        if seconds:
            points.append((1 / seconds, row))
    _scatter(axes, race, points)
    values = [(speed, _means(row).of(race.measure).mean) for speed, row in points]
    front = sorted(
        (speed, loss)
        for speed, loss in values
        if not any(other > speed and lower < loss for other, lower in values)
    )
    if front:
        axes.plot(*zip(*front, strict=True), color="0.6", zorder=0)
    _say_if_empty(axes, front, NOT_TIMED)
    axes.set(xlabel="training tokens per second", ylabel=race.measure)


def _means(row: Row) -> Means:
    assert row.means is not None, "only contestants with a run are drawn"
    return row.means


def _say_if_empty(axes: Axes, shown: Sequence[object], missing: str) -> None:
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
        value = _means(row).of(race.measure)
        axes.errorbar(x, value.mean, yerr=value.half, fmt="o", color="tab:blue", capsize=2)
        axes.annotate(
            row.contestant, (x, value.mean), xytext=(4, 3), textcoords="offset points", fontsize=7
        )
    axes.grid(alpha=0.3)


def _colors(number: int) -> list[object]:
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
