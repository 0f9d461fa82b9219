"""The page of a GPU: one row a test function, failures by name;
nothing is written where there is none.
"""

import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.gpu_page import PAGE, page

pytestmark = pytest.mark.nightly


def test_the_page_has_the_card_and_a_row_for_each_function() -> None:
    results = [
        ("test_it_trains[a]", "passed", 1.2),
        ("test_it_trains[b]", "failed", 2.0),
        ("test_x", "skipped", 0.0),
    ]
    lines = page("NVIDIA H100", results).splitlines()
    assert lines[4].startswith(f"NVIDIA H100; torch {torch.__version__.split('+')[0]}")
    assert lines[-2:] == ["| it trains | 1 | b | 0 | 3 |", "| x | 0 | 0 | 1 | 0 |"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_everything_is_skipped_and_no_page_is_written() -> None:
    before = PAGE.read_bytes() if PAGE.exists() else None
    words = [
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "tests.gpu_page",
        "tests/test_gpu.py",
        "-k",
        "goes_on",
        "-rs",
    ]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "needs a CUDA device" in done.stdout
    assert (PAGE.read_bytes() if PAGE.exists() else None) == before
