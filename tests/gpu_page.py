"""`pytest -m gpu -p tests.gpu_page`: what the tests found on this GPU, as docs/gpu.md;
nothing without one.
"""

import datetime
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs/gpu.md"
PACKAGES = ("torch", "lightning", "hydra-core")
found: list[tuple[str, str, float]] = []  # test, outcome, seconds


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Each test once: as it was called, or as it could not be."""
    if report.when == "call" or report.outcome != "passed":
        found.append((report.nodeid.partition("::")[2], report.outcome, report.duration))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the page at the end."""
    if torch.cuda.is_available() and found:
        PAGE.write_text(page(torch.cuda.get_device_name(), found))


def page(card: str, results: Iterable[tuple[str, str, float]]) -> str:
    """Card, versions, and a row for each test function."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    rows: dict[str, list[tuple[str, str, float]]] = {}
    for name, outcome, seconds in results:
        rows.setdefault(name.partition("[")[0], []).append(
            (name.partition("[")[2].rstrip("]"), outcome, seconds)
        )
    lines = [
        "# What works on a GPU",
        "",
        "Written by `make test-gpu`.",
        "",
        f"{card}; {versions}, CUDA {torch.version.cuda}, Python {platform.python_version()}; "
        f"{datetime.date.today()}.",
        "",
        "| test | passed | failed | skipped | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, cases in rows.items():
        failed = [case or "yes" for case, outcome, _ in cases if outcome == "failed"]
        counts = [sum(outcome == word for _, outcome, _ in cases) for word in ("passed", "skipped")]
        seconds = sum(seconds for *_, seconds in cases)
        title = name.removeprefix("test_").replace("_", " ")
        lines.append(
            f"| {title} | {counts[0]} | {', '.join(failed) or 0} | {counts[1]} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"
