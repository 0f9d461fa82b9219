"""The results in `results/` are those of the records there: `make docs` writes them anew."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.pages.markers import ROOT
from app.pages.races import again, folders
from app.races.page import source
from app.races.tables import markdown

FOLDERS = folders()


def same(one: Any, other: Any) -> bool:
    """Equal, but for what another version of scipy may round otherwise."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_numbers_table_and_pictures_are_those_of_the_records(folder: Path) -> None:
    race, result = again(folder)
    assert same(json.loads(json.dumps(result)), json.loads((folder / "result.json").read_text()))
    assert (folder / "README.md").read_text().startswith(markdown(race, folder.name, result))
    for size, numbers in result.items():
        pictures = list(folder.glob(f"{size}_*.png"))
        assert len(pictures) == 4
        assert {Image.open(path).text["Source"] for path in pictures} == {source(race, size, numbers)}


def test_the_picture_of_the_readme_is_one_of_them() -> None:
    text = (ROOT / "README.md").read_text()
    assert any(f"](results/{folder.name}/xs_differences.png)" in text for folder in FOLDERS)
