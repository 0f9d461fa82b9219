"""Maps of one value for each layer, on one scale."""

from collections.abc import Sequence

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

ACROSS = 4  # layers beside each other


def maps(figure: Figure, values: Tensor, rows: Sequence[str], ylabel: str, unit: str) -> None:
    """Values (L, R, E) from 0 up, small ones told apart (colours by the square root);
    NaN stays empty.
    """
    across = min(ACROSS, len(values))
    down = -(-len(values) // across)
    figure.set_size_inches(9, 1.5 + 2.5 * down)
    all_axes = list(figure.subplots(down, across, squeeze=False).flat)
    norm = PowerNorm(0.5, vmin=0, vmax=max(values.nan_to_num(0).max().item(), 1e-3), clip=True)
    for axes in all_axes[len(values) :]:
        axes.set_axis_off()
    for layer, (axes, cells) in enumerate(zip(all_axes, values, strict=False)):
        image = axes.imshow(cells.numpy(), aspect="auto", interpolation="nearest", norm=norm)
        axes.set(title=f"layer {layer}", xlabel="expert", ylabel="" if layer % across else ylabel)
        if rows:
            axes.set_yticks(
                range(len(rows)), [] if layer % across else [name[:16] for name in rows]
            )
    figure.colorbar(image, ax=all_axes, label=unit)
