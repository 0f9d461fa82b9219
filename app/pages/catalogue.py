"""The table of all registered parts, read from their classes, docstrings and YAMLs."""

import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any, get_args

from rich.table import Table

from app.config.parts import KINDS, build_part
from app.registry import find, knobs, names


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    kind: str
    name: str
    line: str
    paper: str  # arXiv id; empty for a part without a paper
    causal_training: bool
    causal_evaluation: bool
    scope: str  # what a choice depends on; for a balance loss the scopes to choose from
    k: str  # fixed | varying; only for selections


def entries() -> list[Entry]:
    """Every registered part of a router, its balance and its experts."""
    return [entry(kind, name) for kind in KINDS for name in names(kind)]


def entry(kind: str, name: str) -> Entry:
    """The row of one part."""
    cls = find(kind, name)
    text = inspect.getdoc(sys.modules[cls.__module__]) or inspect.getdoc(cls) or ""
    part: Any = build_part(kind, name) if kind in ("select", "drop") else cls  # whose causality may hang on a knob
    causal = getattr(part, "causal", "always")
    paper = re.search(r"\b\d{4}\.\d{5}\b", text)
    scopes = get_args(knobs(cls).get("scope"))  # a loss offers several
    return Entry(
        kind=kind,
        name=name,
        line=" ".join(text.split("\n\n")[0].split()).rstrip("."),
        paper=paper[0] if paper else "",
        causal_training=causal == "always",
        causal_evaluation=causal != "never",
        scope=" | ".join(scopes) or getattr(part, "scope", "" if kind == "balance" else "token"),
        k="" if kind != "select" else "fixed" if part.k and part.k == part.max_k else "varying",
    )


def markdown() -> str:
    """The table for the README."""
    head = "| part | name | what it does | paper | causal in training / evaluation | scope | k |\n"
    head += "| --- " * 7 + "|\n"
    return head + "".join(f"| {' | '.join(_cells(e))} |\n" for e in entries())


def table() -> Table:
    """For the terminal."""
    made = Table(title="router-zoo")
    for column in ("part", "name", "what it does", "paper", "causal train", "causal eval", "scope", "k"):
        made.add_column(column, overflow="fold")
    for e in entries():
        causal = (_yes(e.causal_training), _yes(e.causal_evaluation))
        made.add_row(e.kind, e.name, e.line, e.paper, *causal, e.scope, e.k)
    return made


def _cells(row: Entry) -> tuple[str, ...]:
    causal = f"{_yes(row.causal_training)} / {_yes(row.causal_evaluation)}"
    paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else ""
    return (row.kind, f"`{row.name}`", row.line, paper, causal, row.scope.replace("|", "\\|"), row.k)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
