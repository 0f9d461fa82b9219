"""The page of each stored race follows from its records: `make docs` writes it again."""

from pathlib import Path

import pytest

from app.pages.races import again, folders
from app.races.page import readme

FOLDERS = folders()


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_page_is_that_of_its_records(folder: Path) -> None:
    race, result = again(folder)
    assert (folder / "README.md").read_text() == readme(race, folder.name, result), (
        "make docs writes it again"
    )
    assert all((folder / f"{size}_differences.png").exists() for size in result)
