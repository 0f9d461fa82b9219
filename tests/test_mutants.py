"""The list of planted faults keeps in step with the code; `make mutants` tries them."""

import pytest

from tests.mutants import ROOT, Mutant, mutants


@pytest.mark.parametrize("mutant", mutants(), ids=str)
def test_a_fault_can_be_planted_at_one_place_and_has_tests(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1 and mutant.new != mutant.old
    paths = [word for word in mutant.tests.split() if word.startswith("tests/")]
    assert paths and all((ROOT / path).exists() for path in paths)


def test_the_list_covers_every_area() -> None:
    files = [mutant.file for mutant in mutants()]
    for area in ("routers/score", "routers/select", "routers/weigh", "routers/drop", "routers/balance", "experts",
                 "app/model", "app/training", "app/analysis", "app/data", "callbacks"):  # fmt: skip
        assert any(file.startswith(area) for file in files), area
    assert len(files) >= 60
