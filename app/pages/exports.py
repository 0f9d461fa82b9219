"""What exports where: every router with every layout,
and the architecture of `transformers` that computes the same.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from app.config.compose import Config, composed
from app.cost.budget import on_meta
from app.hub.architectures import fitting
from app.hub.facts import Facts, facts_of
from app.registry import UserError

CONF = Path(__file__).parents[2] / "conf"
SMALL = ("model=nano", "tokenizer=bytes", "allow_non_causal=true")
NORMS = ("none", "head", "all")  # of queries and keys


def choices(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def pairs() -> Iterator[tuple[str, str, Config]]:
    """Every router with every layout, and its config."""
    for router in choices("router"):
        for layout in choices("experts"):
            yield router, layout, _by_router(router) | {"experts": _by_layout(layout)}


@cache
def _by_router(name: str) -> Config:
    return composed([f"router={name}", *SMALL])


@cache
def _by_layout(name: str) -> object:
    return composed([f"experts={name}", *SMALL])["experts"]


def architectures(facts: Facts) -> list[str]:
    """By the norm of queries and keys; empty where there is none."""
    found = []
    for norm in NORMS:
        try:
            found.append(fitting(facts | {"model.qk_norm": norm}).name)
        except UserError:
            found.append("")
    return found


@cache
def table() -> dict[str, dict[str, list[str]]]:
    """The architectures of each router and layout that can be built."""
    found: dict[str, dict[str, list[str]]] = {}
    for router, layout, config in pairs():
        try:
            facts = facts_of(config, on_meta(config))
        except UserError:
            continue
        found.setdefault(router, {})[layout] = architectures(facts)
    return found


def markdown() -> str:
    """The table for docs/export.md, and the layouts and routers that it leaves out."""
    cells = table()
    routed = [name for name in choices("experts") if name != "dense"]
    layouts = [name for name in routed if any(any(row.get(name, [])) for row in cells.values())]
    routers = [
        name for name, row in cells.items() if any(any(row.get(layout, [])) for layout in layouts)
    ]
    rows = [["router", *layouts], ["---"] * (1 + len(layouts))]
    rows += [
        [f"`{name}`", *(_cell(cells[name].get(layout, [])) for layout in layouts)]
        for name in routers
    ]
    rows += [
        ["any, `experts=dense`", _cell(cells[routers[0]]["dense"]), *[""] * (len(layouts) - 1)]
    ]
    others = ", ".join(f"`{name}`" for name in routed if name not in layouts)
    refused = ", ".join(f"`{name}`" for name in cells if name not in routers)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(
        [*lines, "", f"No layout of these: {others}.", "", f"No router of these: {refused}.", ""]
    )


def _cell(names: list[str]) -> str:
    return " / ".join(f"`{name}`" if name else "-" for name in names) if any(names) else "-"
