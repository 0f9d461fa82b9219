"""Rules of the tree that a reader relies on."""

import ast
import inspect
from pathlib import Path

import pytest

from app.registry import PACKAGES, find, knobs, names

ROOT = Path(__file__).parent.parent
LAYERS = {  # who may import whom: the registry first, train.py last
    "routers": {"routers", "app.registry"},
    "experts": {"experts", "app.registry"},
    "app": {"app", "routers", "experts"},
    "callbacks": {"callbacks", "app", "routers", "experts"},
}


def imported(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module else set()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in LAYERS}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        for name in imported(path):
            assert any(f"{name}.".startswith(f"{allowed}.") for allowed in LAYERS[layer]), f"{path} imports {name}"


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py") if path.name in drawers]


def test_every_part_is_found_by_the_name_of_its_file() -> None:
    for kind in PACKAGES:
        for name in names(kind):
            assert find(kind, name).__module__.endswith(f".{name}"), f"{kind} {name}"


def test_no_knob_has_a_default_in_python() -> None:
    for kind in PACKAGES:
        for name in names(kind):
            cls = find(kind, name)
            parameters = inspect.signature(cls).parameters
            assert all(parameters[knob].default is inspect.Parameter.empty for knob in knobs(cls))
