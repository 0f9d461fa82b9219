"""Rules of the tree that a reader relies on."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.registry import PACKAGES, find, knobs, names

ROOT = Path(__file__).parent.parent
# every folder, and all that it may import beside itself: of those above it only, so there is no
# circle
ORDER = {
    "app.registry": [],
    "app.fault_points": [],
    "routers": ["app.registry"],
    "experts": ["app.registry"],
    "app.model": ["app.registry", "routers", "experts"],
    "app.data": ["app.registry", "app.fault_points"],
    "app.training": ["app.registry", "app.fault_points", "routers", "experts", "app.model"],
    "app.config": ["app.registry", "routers", "app.model", "app.training"],
    "app.cost": [
        "app.registry",
        "routers",
        "experts",
        "app.model",
        "app.data",
        "app.training",
        "app.config",
    ],
    "app.runs": [
        "app.registry",
        "app.fault_points",
        "app.model",
        "app.data",
        "app.training",
        "app.config",
        "app.cost",
    ],
    "app.hub": [
        "app.registry",
        "experts",
        "app.model",
        "app.data",
        "app.training",
        "app.config",
        "app.cost",
        "app.runs",
    ],
    "app.analysis": [
        "app.registry",
        "routers",
        "experts",
        "app.model",
        "app.training",
        "app.config",
        "app.cost",
        "app.data",
        "app.runs",
    ],
    "app.races": [
        "app.registry",
        "app.model",
        "app.training",
        "app.config",
        "app.cost",
        "app.data",
        "app.runs",
        "app.analysis",
    ],
    "app.pages": [
        "app.registry",
        "routers",
        "app.model",
        "app.training",
        "app.config",
        "app.cost",
        "app.races",
        "app.hub",
    ],
    "callbacks": [
        "app.registry",
        "routers",
        "app.model",
        "app.training",
        "app.config",
        "app.cost",
        "app.analysis",
    ],
}
COMMANDS = (
    {f"app.{path.stem}" for path in (ROOT / "app").glob("*.py")} - ORDER.keys() - {"app.__init__"}
)
SOURCES = ("app", "routers", "experts", "callbacks", "benchmarks")


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module else set()
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {
        name
        for name in found
        if name.split(".")[0] in {"app", "routers", "experts", "callbacks", "benchmarks"}
    }


def inside(name: str, folder: str) -> bool:
    return f"{name}.".startswith(f"{folder}.")


def wrong_imports(source: str, folder: str) -> list[str]:
    allowed = [folder, *ORDER[folder]]
    return sorted(
        name for name in imported(source) if not any(inside(name, each) for each in allowed)
    )


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_what_stands_above_it(folder: str) -> None:
    path = ROOT / folder.replace(".", "/")
    for file in (
        [path.with_suffix(".py")]
        if path.with_suffix(".py").exists()
        else files(folder.replace(".", "/"))
    ):
        assert not wrong_imports(file.read_text(), folder), (
            f"{file} imports {wrong_imports(file.read_text(), folder)}"
        )


def test_the_order_has_no_circle_and_names_every_folder() -> None:
    known: set[str] = set()
    for folder, allowed in ORDER.items():
        assert set(allowed) <= known, f"{folder} may import what stands below it"
        known.add(folder)
    folders = {
        f"app.{path.name}" for path in (ROOT / "app").iterdir() if (path / "__init__.py").exists()
    }
    assert folders | {"routers", "experts", "callbacks"} <= known


@pytest.mark.parametrize(
    ("source", "folder", "wrong"),
    [
        (
            "from app.training.module import LanguageModel",
            "app.model",
            "app.training.module.LanguageModel",
        ),
        ("import app.budget", "app.runs", "app.budget"),
        ("from app.model.moe import MoE", "routers", "app.model.moe.MoE"),
        ("def f():\n    from callbacks import draw", "app.analysis", "callbacks.draw"),
    ],
)
def test_a_planted_wrong_import_is_found(source: str, folder: str, wrong: str) -> None:
    assert wrong_imports(source, folder) == [wrong]


def test_nothing_but_train_imports_a_command() -> None:
    for file in files(*SOURCES):
        used = {
            name
            for name in imported(file.read_text())
            for command in COMMANDS
            if inside(name, command)
        }
        assert not used, f"{file} imports the command {used}"


def test_the_model_needs_no_lightning() -> None:
    code = "import sys, app.model.assemble, app.model.upcycle; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def parts() -> list[tuple[str, str]]:
    return [(kind, name) for kind in PACKAGES for name in names(kind)]


@pytest.mark.parametrize(("kind", "name"), parts())
def test_a_part_has_the_name_of_its_file_and_no_default_in_python(kind: str, name: str) -> None:
    cls = find(kind, name)
    parameters = inspect.signature(cls).parameters
    assert cls.__module__.endswith(f".{name}")
    assert all(parameters[knob].default is inspect.Parameter.empty for knob in knobs(cls))


@pytest.mark.parametrize(("kind", "name"), parts())
def test_every_option_of_a_part_is_documented(kind: str, name: str) -> None:
    cls = find(kind, name)
    text = cls.__doc__ or ""
    assert text
    assert [knob for knob in knobs(cls) if f"\n        {knob}: " not in text] == []
