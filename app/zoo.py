"""`python -m app.zoo`: the table of all registered parts, read from their classes, docstrings and YAMLs.

`--json` for programs, `--markdown` for the README, `--refused` for the pairs that cannot go together and why.
"""

import argparse
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from app.registry import UserError, find, knobs, names
from routers.balancer import Balancer
from routers.contract import Context, Sizes
from routers.router import Router

KINDS = ("score", "select", "weigh", "drop", "balance", "experts")
FOLDERS = {kind: f"router/{kind}" for kind in KINDS[:4]}
SIZES = Sizes(dim=16, num_experts=8, top_k=2, num_layers=2, vocab_size=64)  # that parts are tried out at


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    kind: str
    name: str
    line: str
    paper: str  # arXiv id
    causal_training: bool
    causal_evaluation: bool
    scope: str  # what a choice depends on; for a balance loss the scopes to choose from
    k: str  # fixed | varying; only for selections


def entries() -> list[Entry]:
    """Every registered part of a router, its balance and its experts."""
    return [entry(kind, name) for kind in KINDS for name in names(kind)]


@cache
def defaults(kind: str, name: str) -> dict[str, Any]:
    """What the YAML of a part says; `k: null` becomes the layout's.

    Raises:
        UserError: there is no such YAML.
    """
    package = inspect.getfile(sys.modules[find(kind, name).__module__.partition(".")[0]])
    path = f"{FOLDERS.get(kind, kind)}/{name}.yaml"
    found = [folder / "conf" / path for folder in list(Path(package).parents)[:2] if (folder / "conf" / path).exists()]
    if not found:
        raise UserError(f"{kind} {name}: has no conf/{path}")
    around = {"model": {"hidden_dim": SIZES.dim}, "seed": 0}  # what the YAMLs of parts refer to
    whole = OmegaConf.create({**around, "part": OmegaConf.load(found[0])})
    part: Any = OmegaConf.to_container(whole, resolve=True)["part"]  # type: ignore[index, call-overload]
    values: dict[str, Any] = part[name] if kind == "balance" else part
    return {**values, "k": SIZES.top_k} if values.get("k", 0) is None else values


def build(kind: str, name: str, sizes: Sizes = SIZES) -> Any:
    """The part with the values of its YAML.

    Raises:
        ValueError: they do not fit the sizes.
    """
    values = {key: value for key, value in defaults(kind, name).items() if key != "name"}
    return find(kind, name)(sizes.dim if kind == "experts" else sizes, **values)


def router(sizes: Sizes = SIZES, *, score: str, select: str, weigh: str, drop: str) -> Router:
    """A router of these parts, each with the values of its YAML.

    Raises:
        ValueError: the parts cannot go together.
    """
    part = partial(build, sizes=sizes)
    return Router(part("score", score), part("weigh", weigh), part("select", select), part("drop", drop), sizes)


def refused() -> Iterator[tuple[str, str, str]]:
    """Pairs of parts that cannot go together, and the reason: neither beside plain nor beside noisy top-k routing."""
    plain = {"select": "top_k", "weigh": "softmax", "drop": "none", "balance": None}
    for one, other in itertools.combinations(("score", *plain), 2):
        for first, second in itertools.product(names(one), names(other)):
            reasons = [_reason({"score": s, **plain, one: first, other: second}) for s in ("linear", "noisy")]
            if all(reasons):
                yield f"{one}={first}", f"{other}={second}", str(reasons[0])


def markdown_refused() -> str:
    """The table for docs/refused.md."""
    rows = "".join(f"| `{first}` | `{second}` | {reason} |\n" for first, second, reason in refused())
    return "| part | part | why not |\n| --- | --- | --- |\n" + rows


def entry(kind: str, name: str) -> Entry:
    """The row of one part."""
    cls = find(kind, name)
    text = inspect.getdoc(sys.modules[cls.__module__]) or inspect.getdoc(cls) or ""
    part: Any = build(kind, name) if kind in ("select", "drop") else cls  # whose causality may hang on a knob
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
        k="" if kind != "select" else "varying" if part.k is None else "fixed",
    )


def markdown() -> str:
    """The table for the README."""
    head = "| part | name | what it does | paper | causal in training / evaluation | scope | k |\n"
    head += "| --- " * 7 + "|\n"
    return head + "".join(f"| {' | '.join(_cells(e))} |\n" for e in entries())


def _reason(parts: dict[str, str | None]) -> str:
    """Why these parts are refused; empty if they are not."""
    try:
        _trial(**parts)  # type: ignore[arg-type]
    except (UserError, ValueError) as error:
        return str(error)
    return ""


def _trial(score: str, select: str, weigh: str, drop: str, balance: str | None) -> None:
    made = router(score=score, select=select, weigh=weigh, drop=drop)
    shared = made.score.shared()
    valid = torch.ones(2, 8, dtype=torch.bool)
    tokens = torch.arange(valid.numel()) % SIZES.vocab_size
    routing = made(torch.randn(valid.numel(), SIZES.dim), Context(valid, tokens, shared=shared))
    if balance is not None:
        balancer = Balancer({balance: build("balance", balance)})
        balancer.fits(made.score)
        balancer.losses([routing, routing], None)


def _cells(row: Entry) -> tuple[str, ...]:
    causal = f"{_yes(row.causal_training)} / {_yes(row.causal_evaluation)}"
    paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else ""
    return (row.kind, f"`{row.name}`", row.line, paper, causal, row.scope.replace("|", "\\|"), row.k)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _print(console: Console) -> None:
    table = Table(title="router-zoo")
    for column in ("part", "name", "what it does", "paper", "causal train", "causal eval", "scope", "k"):
        table.add_column(column, overflow="fold")
    for e in entries():
        causal = (_yes(e.causal_training), _yes(e.causal_evaluation))
        table.add_row(e.kind, e.name, e.line, e.paper, *causal, e.scope, e.k)
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m app.zoo", description="Prints all registered parts.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects")
    form.add_argument("--markdown", action="store_true", help="the table of the README")
    form.add_argument("--refused", action="store_true", help="pairs that cannot go together, and why")
    chosen = parser.parse_args(arguments)
    if chosen.json:
        print(json.dumps([asdict(e) for e in entries()], indent=1))
    elif chosen.markdown:
        print(markdown(), end="")
    elif chosen.refused:
        print(markdown_refused(), end="")
    else:
        _print(Console())


if __name__ == "__main__":
    main()
