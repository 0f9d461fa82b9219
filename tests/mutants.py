"""`python -m tests.mutants [WORD ...]`: plants the faults of tests/mutants.yaml one at a time; a
test must see each.

Every fault is one replaced line in a copy of the tree, tried by the tests of its area. Prints
`killed` or `survived` for each as it goes; ends with 1 if one survived. Words choose the faults
whose file or text contains one of them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
COPIED = (
    "app",
    "benchmarks",
    "callbacks",
    "conf",
    "experts",
    "routers",
    "tests",
    "train.py",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "docs",
    "results",
    "requirements.txt",
    "requirements-dev.txt",
    "Makefile",
)
# of one fault: a test that hangs has seen it
LIMIT_S = 300


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` in `file` becomes `new`, and one of `tests` must fail."""

    file: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        return (
            f"{self.file}: {' '.join(self.new.split()) or 'nothing'}   for   "
            f"{' '.join(self.old.split())}"
        )


def mutants() -> list[Mutant]:
    """All faults of the list."""
    return [Mutant(**entry) for entry in OmegaConf.load(Path(__file__).with_suffix(".yaml"))]


@contextmanager
def planted(mutant: Mutant, tree: Path) -> Iterator[None]:
    """The fault in a tree, for a while."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new, 1), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def passes(tree: Path, tests: str) -> bool:
    """Whether the tests pass in a tree."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # The tests of both tiers see a fault.
    command += ["-m", "not browser and not gpu", *tests.split()]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # no test was run
        raise RuntimeError(done.stdout.decode()[-2000:] + done.stderr.decode()[-2000:])
    return done.returncode == 0


def require_places(faults: list[Mutant]) -> None:
    """Raise SystemExit if the line of a fault does not occur exactly once,
    before any fault is planted.
    """
    moved = [m for m in faults if (ROOT / m.file).read_text(encoding="utf-8").count(m.old) != 1]
    if moved:
        raise SystemExit(
            "\n".join(f"{m.file}: not exactly once in the file: {m.old}" for m in moved)
        )


def main(words: list[str]) -> int:
    """Tries the faults that contain a word, two at a time; returns how many survived."""
    chosen = [
        m
        for m in mutants()
        if not words or any(word in f"{m.file} {m.old} {m.new}" for word in words)
    ]
    require_places(chosen)
    trees: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for worker in range(2):
            trees.put(_copied(Path(folder) / str(worker)))
        survived = sum(pool.map(lambda mutant: _survives(mutant, trees), chosen))
    print(f"{len(chosen) - survived} of {len(chosen)} faults were seen by a test")
    return survived


def _survives(mutant: Mutant, trees: "Queue[Path]") -> bool:
    tree = trees.get()
    start = time.monotonic()
    try:
        with planted(mutant, tree):
            survives = passes(tree, mutant.tests)
    finally:
        trees.put(tree)
    print(
        f"{'SURVIVED' if survives else 'killed':8} {time.monotonic() - start:4.0f} s  {mutant}",
        flush=True,
    )
    return survives


def _copied(tree: Path) -> Path:
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tree / name, ignore=ignored) if source.is_dir() else shutil.copy(
            source, tree / name
        )
    return tree


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
