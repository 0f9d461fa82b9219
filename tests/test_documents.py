"""What README and CONTRIBUTING tell a newcomer to type works as it stands there."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def run(*command: str, cwd: Path) -> str:
    """What a command of this Python prints, in a fresh process; it must end well."""
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_the_layer_of_the_readme_trains_a_step_without_hydra() -> None:
    build, step = re.findall(
        r"```python\n(.*?)```", section(README, "From Python"), flags=re.DOTALL
    )
    check = "before = layer.experts.routed.w_in.detach().clone()\n"
    after = "import sys\nassert 'hydra' not in sys.modules and 'lightning' not in sys.modules\n"
    after += (
        "assert y.isfinite().all() and y.std() < 1 and not torch.equal(before, "
        "layer.experts.routed.w_in)\n"
    )
    run("-c", build + check + step + after, cwd=ROOT)


def test_every_file_on_the_map_exists() -> None:
    stations = re.findall(
        r"^\| [\w ]+ \|.*\| (`.*`) \|$",
        section(CONTRIBUTING, "The way of a batch"),
        flags=re.MULTILINE,
    )
    files = [file for station in stations for file in re.findall(r"`([^`]+)`", station)]
    assert len(stations) == 12
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/scale.md",
        "docs/refused.md",
        "docs/data.md",
    ],
)
def test_the_files_and_tests_that_a_page_names_exist(page: str) -> None:
    text = re.sub(
        r"^`[^`]*`\n```.*?```|^```.*?```",
        "",
        (ROOT / page).read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )
    files = set(
        re.findall(
            r"`((?:app|routers|experts|callbacks|tests|conf|benchmarks|docs)/[\w/]+\.\w+)", text
        )
    )
    assert [file for file in files if "mine" not in file and not (ROOT / file).is_file()] == []
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"(test_\w+\.py)::(test_\w+?)_?(?:\.\.\.|`)", text)
    assert [(file, name) for file, name in named if f"def {name}" not in tests.get(file, "")] == []


def test_every_promise_of_security_names_tests_that_exist() -> None:
    table, more = (ROOT / "SECURITY.md").read_text().split("Also promised:")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    rows += [
        [item, item]
        for item in re.findall(
            r"^- .*?\(`.*?\)\.", more.split("## Not")[0], flags=re.DOTALL | re.MULTILINE
        )
    ]
    assert len(rows) > 12
    for row in rows[1:]:
        named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", row[-1])
        assert named, row[0]
        for file, name in named:
            (path,) = (ROOT / "tests").rglob(file)
            assert not name or f"def {name}(" in path.read_text(), (row[0], file, name)


def test_every_fault_of_the_table_has_a_test_that_is_not_skipped() -> None:
    text = section((ROOT / "docs/scale.md").read_text(), "What can go wrong")
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    modules = {
        path.name: ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")
    }
    for fault, _, shown in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+?)_?(?:\.\.\.|`)", shown)
        assert named, f"{fault} names no test"
        for file, name in named:
            functions = [
                n
                for n in modules[file].body
                if isinstance(n, ast.FunctionDef) and n.name.startswith(name)
            ]
            assert functions, (fault, file, name)
            for function in functions:
                marks = " ".join(map(ast.unparse, function.decorator_list))
                assert "skip" not in marks and "xfail" not in marks, (fault, function.name)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the tree with the parts that CONTRIBUTING adds, by exactly its steps;
    and their names.
    """
    tree = tmp_path_factory.mktemp("extended")
    for folder in ("app", "routers", "experts", "callbacks", "conf", "docs", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("train.py", "README.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / file, tree)
    blocks = re.findall(
        r"^`([\w/.]+)`\n```\w+\n(.*?)```", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE
    )
    for name, body in blocks:
        assert not (tree / name).exists()
        (tree / name).write_text(body)
    run("-m", "app.pages", cwd=tree)  # make docs
    return tree, [Path(name).stem for name, _ in blocks if name.endswith(".py")]


@pytest.mark.nightly
def test_a_part_added_as_contributing_says_passes_the_contract_tests(
    extended: tuple[Path, list[str]],
) -> None:
    tree, names = extended
    assert len(names) == 3
    files = (
        "tests/routers/test_contract.py",
        "tests/test_architecture.py",
        "tests/app/pages/test_pages.py",
    )
    chosen = f"{' or '.join(names)} or test_architecture or (in_step_with_the_code and not cells)"
    said = run("-m", "pytest", "-vv", *files, "-k", chosen, cwd=tree)
    assert all(f"{name}] PASSED" in said for name in names)
    readme = (tree / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in names)


@pytest.mark.nightly
def test_a_part_added_as_contributing_says_trains(
    extended: tuple[Path, list[str]], text: Path
) -> None:
    tree, _ = extended
    nano = [
        "model=nano",
        "tokenizer=bytes",
        "data=text",
        f"data.path={text}",
        "data.seq_len=32",
        "data.val_rows=2",
        "trainer.max_steps=1",
        "trainer.precision=32-true",
        "callbacks=off",
    ]
    run(
        "train.py", "router/score=soft_cap", "balance=[aux,peak]", "experts=scaled", *nano, cwd=tree
    )


def test_a_balance_term_that_does_not_nest_under_its_name_is_told_so(
    extended: tuple[Path, list[str]],
) -> None:
    tree, _ = extended
    (tree / "conf/balance/flat.yaml").write_text("name: flat\nweight: 0.01\n")
    done = subprocess.run(
        [sys.executable, "-m", "app.budget", "model=nano", "tokenizer=bytes", "balance=flat"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "nests under its own name" in done.stderr
