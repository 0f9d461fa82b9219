"""Print symptoms of compressed code: `python -m benchmarks.readability [DIRECTORY ...]`.

The figures are for looking, not for enforcing. They follow when the code reads well, and mean
nothing when code is written for them. Without arguments, one row describes the source and one the
tests of this project; with directories, one row describes each of them, so that other projects can
stand beside it.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ("train.py", "app", "routers", "experts", "callbacks", "benchmarks")
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass
class Counts:
    """Sums over files.

    `tokens_of_line` maps (file, line) of each code line to its number of tokens: names, operators,
    literals.
    """

    files: int = 0
    lines: int = 0
    docstring_lines: int = 0
    comment_lines: int = 0
    long_lines: int = 0
    format_skips: int = 0
    noqa: int = 0
    any_annotations: int = 0
    function_lengths: list[int] = field(default_factory=list)
    tokens_of_line: Counter[tuple[str, int]] = field(default_factory=Counter)

    @property
    def code_lines(self) -> int:
        return len(self.tokens_of_line)

    @property
    def tokens_per_code_line(self) -> float:
        return sum(self.tokens_of_line.values()) / self.code_lines


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the line numbers that docstrings of modules, classes and functions occupy."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is None:
            continue
        docstring = node.body[0]
        lines.update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines


def add_file(counts: Counts, path: Path) -> None:
    """Add the figures of one Python file to `counts`."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines()
    in_docstring = docstring_lines(tree)

    counts.files += 1
    counts.lines += len(lines)
    counts.docstring_lines += len(in_docstring)
    counts.long_lines += sum(len(line) > 100 for line in lines)
    counts.format_skips += len(re.findall(r"#\s*fmt:\s*(?:skip|off)", text))
    counts.noqa += len(re.findall(r"#\s*noqa", text))

    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            counts.comment_lines += 1
        if token.type in LAYOUT_TOKENS or line in in_docstring:
            continue
        counts.tokens_of_line[str(path), line] += 1
        if token.string == "Any" and not token.line.startswith(("from ", "import ")):
            counts.any_annotations += 1

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            counts.function_lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)


def count(paths: Iterable[Path]) -> Counts:
    """Return the figures of all Python files at or below `paths`."""
    counts = Counts()
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            add_file(counts, file)
    return counts


def percentile(values: list[int], share: float) -> int:
    """Return the smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(name: str, counts: Counts) -> str:
    """Return one line of the table."""
    lengths = counts.function_lengths
    functions = f"{percentile(lengths, 0.5)}/{percentile(lengths, 0.9)}/{max(lengths)}"
    comments = f"{100 * counts.comment_lines / counts.lines:.1f} %"
    docstrings = f"{100 * counts.docstring_lines / counts.lines:.0f} %"
    return (
        f"{name:24} {counts.files:5} {counts.lines:7} {counts.tokens_per_code_line:11.1f} "
        f"{comments:>9} {docstrings:>10} {functions:>12} {counts.long_lines:6} "
        f"{counts.format_skips:5} {counts.noqa:5} {counts.any_annotations:5}"
    )


def main(directories: list[str]) -> None:
    print(
        f"{'':24} {'files':>5} {'lines':>7} {'tokens/line':>11} {'comments':>9} {'docstrings':>10} "
        f"{'function':>12} {'> 100':>6} {'skip':>5} {'noqa':>5} {'Any':>5}"
    )
    if directories:
        for directory in directories:
            print(row(Path(directory).name, count([Path(directory)])))
        return
    print(row("source", count(ROOT / name for name in SOURCE)))
    print(row("tests", count([ROOT / "tests"])))


if __name__ == "__main__":
    main(sys.argv[1:])
