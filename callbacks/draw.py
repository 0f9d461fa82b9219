"""Pictures of the experts: colours readable by the colour-blind, on one scale for all steps and all
runs.

A load is white where it is even, blue below and red above, and crossed where an expert is dead; all
else is viridis.

matplotlib is imported when something is drawn, and no window system is ever asked for.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"
LOADS = "RdBu_r"
# columns whose names fit under a panel
NAMED = 32
# that fit a card of TensorBoard; of more, so many evenly spaced ones
LAYERS = 24
# inches that the name of the scale needs
LOWEST = 3.2
LOAD = "load, multiples of the even load"


def figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple["Figure", list["Axes"]]:
    """A figure of a size in inches, and its axes row by row."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return made, list(made.subplots(rows, columns, squeeze=False).flat)


def publish(writer: SummaryWriter, tag: str, drawn: "Figure", step: int) -> None:
    """Puts a figure into the Images tab."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    writer.add_image(tag, np.ascontiguousarray(pixels), step, dataformats="HWC")


def heat_map(
    values: Tensor,
    *,
    title: str,
    rows: str,
    columns: str,
    unit: str,
    top: float,
    row_names: Sequence[str] | None = None,
    loads: bool = False,
) -> "Figure":
    """One cell for each of values (rows, columns), coloured from 0 to `top`, as loads if they are;
    above as `top`.
    """
    height, width = values.shape
    inches_wide = min(14, 3.2 + 0.28 * width)
    inches_high = min(10, max(LOWEST, 1.5 + 0.3 * height))
    drawn, (axes,) = figure(inches_wide, inches_high)
    image = paint(axes, values, top, loads)
    axes.set(title=title, xlabel=columns, ylabel=rows)
    if row_names is not None:
        axes.set_yticks(range(height), [name[:24] for name in row_names], fontsize=8)
    drawn.colorbar(image, ax=axes, label=unit, extend="max", pad=0.01)
    return drawn


def panels(
    maps: Sequence[Tensor],
    *,
    title: str,
    rows: str,
    columns: str,
    unit: str,
    top: float,
    loads: bool = False,
    column_names: Sequence[Sequence[int]] | None = None,
    edges: Sequence[int] | None = None,
    **ticks: object,
) -> "Figure":
    """Draw one heat map for each layer, with one scale.

    Args:
        maps: Values (rows, columns) of each layer.
        title: Of the figure.
        rows: Name of the vertical axis.
        columns: Name of the horizontal axis.
        unit: Of the values.
        top: Value at the end of the colour scale.
        loads: Whether the values are loads.
        column_names: Numbers under the columns of each layer.
        edges: Where the columns begin, and where the last one ends; None: they are equally wide.
        ticks: Set on every axis.
    """
    layers = evenly_spaced(len(maps))
    across = min(4, len(layers))
    down = math.ceil(len(layers) / across)
    drawn, all_axes = figure(3.4 * across + 0.8, 2.6 * down + 0.6, down, across)
    for axes in all_axes[len(layers) :]:
        axes.set_axis_off()
    for place, layer in enumerate(layers):
        axes = all_axes[place]
        image = paint(axes, maps[layer], top, loads, edges)
        # The first panel of a row names the vertical axis for all of them.
        is_first = place % across == 0
        axes.set(title=f"layer {layer}", xlabel=columns, ylabel=rows if is_first else "", **ticks)
        if not is_first and "yticks" in ticks:
            axes.set_yticklabels([])
        _name_columns(axes, column_names[layer] if column_names else [])
    if len(layers) < len(maps):
        title = f"{title} ({len(layers)} of {len(maps)} layers)"
    drawn.suptitle(title)
    drawn.colorbar(image, ax=all_axes, label=unit, extend="max", pad=0.01)
    return drawn


def evenly_spaced(number: int) -> list[int]:
    """The layers of so many that are drawn, the first and the last among them."""
    places = np.linspace(0, number - 1, min(LAYERS, number))
    layers: list[int] = np.unique(places.round().astype(int)).tolist()
    return layers


def _name_columns(axes: "Axes", numbers: Sequence[int]) -> None:
    if 0 < len(numbers) <= NAMED:
        axes.set_xticks(range(len(numbers)), [str(number) for number in numbers], fontsize=7)


def paint(
    axes: "Axes", values: Tensor, top: float, loads: bool, edges: Sequence[int] | None = None
) -> Any:
    """Draw values (rows, columns) as the cells of one axis,
    with columns between `edges` if given.
    """
    from matplotlib.colors import Normalize, TwoSlopeNorm
    from matplotlib.ticker import MaxNLocator

    cells: NDArray[np.float64] = values.double().cpu().numpy()
    height, width = cells.shape
    # A load has two colours, which meet where it is even.
    norm = TwoSlopeNorm(1, 0, max(top, 1 + 1e-6)) if loads else Normalize(0, top)
    style: dict[str, Any] = {"cmap": LOADS if loads else COLOURS, "norm": norm}
    image: Any
    if edges is None:
        image = axes.imshow(cells, aspect="auto", interpolation="nearest", **style)
        middles = np.arange(width, dtype=float)
    else:
        image = axes.pcolormesh(edges, np.arange(height + 1) - 0.5, cells, **style)
        # The first row is on top, as in an image.
        axes.invert_yaxis()
        middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
    if loads:
        rows, columns = np.nonzero(cells == 0)
        axes.scatter(middles[columns], rows, marker="x", color="black", s=20, linewidths=1)
    # Edges are steps, which have many digits.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12 if edges is None else 4))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return image
