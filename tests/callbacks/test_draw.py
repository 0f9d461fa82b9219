"""What a heat map shows of a load."""

import pytest
import torch

from callbacks import draw

LOAD = torch.tensor([[0.0, 1.0, 0.5], [3.0, 2.0, 0.0]])


def test_an_even_load_is_white_and_the_dead_are_crossed() -> None:
    figure = draw.heat_map(
        LOAD, title="t", rows="layer", columns="expert", unit="load", top=3.0, loads=True
    )
    axes = figure.axes[0]
    (image,), (marks,) = axes.get_images(), axes.collections
    shades = image.to_rgba(LOAD.numpy())[..., :3]
    assert shades[0, 1].min() > 0.95, "white"
    assert shades[0, 2][2] > shades[0, 2][0] and shades[1, 0][0] > shades[1, 0][2], (
        "blue below, red above"
    )
    assert sorted(map(tuple, marks.get_offsets().tolist())) == [(0, 0), (2, 1)], (
        "column and row of the two dead"
    )


def test_a_share_has_neither_a_middle_nor_crosses() -> None:
    figure = draw.panels(
        [LOAD / 3], title="t", rows="layer", columns="expert", unit="share", top=1.0
    )
    (image,) = figure.axes[0].get_images()
    assert image.get_cmap().name == "viridis" and not figure.axes[0].collections


@pytest.mark.parametrize("top", [1.0, 0.5])
def test_a_scale_that_ends_below_the_even_load_is_drawn(top: float) -> None:
    draw.heat_map(LOAD, title="t", rows="layer", columns="expert", unit="load", top=top, loads=True)


@pytest.mark.parametrize(
    ("layers", "shown", "said"), [(5, 5, "t"), (48, 24, "t (24 of 48 layers)")]
)
def test_a_picture_has_as_many_layers_as_fit_a_card_and_says_so(
    layers: int, shown: int, said: str
) -> None:
    figure = draw.panels(
        [LOAD] * layers, title="t", rows="domain", columns="expert", unit="load", top=3.0
    )
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == shown and titles[0] == "layer 0" and titles[-1] == f"layer {layers - 1}"
    assert figure.get_suptitle() == said


def test_columns_are_as_wide_as_their_steps() -> None:
    edges = [0, 100, 200, 220]
    figure = draw.panels(
        [LOAD],
        title="t",
        rows="expert",
        columns="step",
        unit="load",
        top=3.0,
        loads=True,
        edges=edges,
    )
    axes = figure.axes[0]
    mesh, marks = axes.collections
    assert mesh.get_coordinates()[0, :, 0].tolist() == edges
    assert mesh.get_array().tolist() == LOAD.tolist()
    top, bottom = reversed(axes.get_ylim())
    assert top < bottom, "expert 0 is at the top"
    assert sorted(map(tuple, marks.get_offsets().tolist())) == [(50, 0), (210, 1)], (
        "in the middle of their columns"
    )
