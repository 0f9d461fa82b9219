"""The table of all registered parts, read from their classes, docstrings and YAMLs."""

import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from app.config.compose import CONF
from app.config.help import GROUPS as HELP
from app.config.parts import FOLDERS, KINDS, build_part
from app.registry import find, knobs, names

GROUPS = ("router", *KINDS)


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    kind: str
    name: str
    line: str
    # arXiv id; empty for a part without a paper
    paper: str
    causal_training: bool
    causal_evaluation: bool
    # what a choice depends on; for a balance loss the scopes to choose from
    scope: str
    # fixed | varying; only for selections
    k: str


def entries() -> list[Entry]:
    """Every registered part of a router, its balance and its experts."""
    return [entry(kind, name) for kind in KINDS for name in names(kind)]


def entry(kind: str, name: str) -> Entry:
    """Return the row of one part."""
    cls = find(kind, name)
    text = inspect.getdoc(sys.modules[cls.__module__]) or inspect.getdoc(cls) or ""
    # Whether a selection or a drop is causal may depend on its options, so it is built.
    part: object = build_part(kind, name) if kind in ("select", "drop") else cls
    causal = getattr(part, "causal", "always")
    paper = re.search(r"\b\d{4}\.\d{5}\b", text)
    return Entry(
        kind=kind,
        name=name,
        line=" ".join(text.split("\n\n")[0].split()).rstrip("."),
        paper=paper[0] if paper else "",
        causal_training=causal == "always",
        causal_evaluation=causal != "never",
        scope=_scope(kind, cls, part),
        k=_k(part) if kind == "select" else "",
    )


def _scope(kind: str, cls: type, part: object) -> str:
    """Return what a choice depends on, or the scopes that a balance loss offers."""
    offered = get_args(knobs(cls).get("scope"))
    if offered:
        return " | ".join(offered)
    scope: str = getattr(part, "scope", "" if kind == "balance" else "token")
    return scope


def _k(selection: Any) -> str:
    """Return whether every token gets the same number of experts."""
    return "fixed" if selection.k and selection.k == selection.max_k else "varying"


def markdown() -> str:
    """Return the table for the README."""
    head = "| part | name | what it does | paper | causal in training / evaluation | scope | k |\n"
    head += "| --- " * 7 + "|\n"
    return head + "".join(f"| {' | '.join(_cells(row))} |\n" for row in entries())


def listing(groups: Sequence[str], width: int) -> str:
    """Return the parts of some groups for a terminal or a pipe of so many columns.

    Args:
        groups: Of `GROUPS`, each with the router presets or the parts of one kind.
        width: Columns of the text.
    """
    return "\n\n".join("\n".join(_lines_of_group(group, width)) for group in groups)


def _lines_of_group(group: str, width: int) -> Iterator[str]:
    override = FOLDERS.get(group, group)
    value = "[NAME,...]" if group == "balance" else "NAME"
    description = HELP[override].partition(";")[0]
    yield f"{group.upper()}: {description}   {override}={value}"
    if group == "router":
        texts = _presets()
    else:
        texts = {row.name: _sentence(row) for row in entries() if row.kind == group}
    indent = " " * 20
    for name, text in texts.items():
        start = f"  {name:<{len(indent) - 3}} "
        yield textwrap.fill(
            text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
        )


def _presets() -> dict[str, str]:
    """Return what each router preset is, by the comment that its file begins with."""
    return {path.stem: _first_comment(path) for path in sorted((CONF / "router").glob("*.yaml"))}


def _first_comment(path: Path) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _sentence(entry: Entry) -> str:
    """Return what a part does, its paper, and what a user should know before choosing it."""
    remarks = [f"arXiv {entry.paper}"] if entry.paper and entry.paper not in entry.line else []
    if not entry.causal_evaluation:
        remarks.append("looks at later tokens: needs allow_non_causal=true")
    elif not entry.causal_training:
        remarks.append("looks at later tokens in training")
    if entry.k == "varying":
        remarks.append("the number of experts per token varies")
    return entry.line + (f" ({'; '.join(remarks)})" if remarks else "")


def _cells(row: Entry) -> tuple[str, ...]:
    causal = f"{_yes(row.causal_training)} / {_yes(row.causal_evaluation)}"
    paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else ""
    return (
        row.kind,
        f"`{row.name}`",
        row.line,
        paper,
        causal,
        row.scope.replace("|", "\\|"),
        row.k,
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
