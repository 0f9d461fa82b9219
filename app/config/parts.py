"""Parts with the values of their YAMLs, of a router, its balance and its experts:
for tables, tests and notebooks.
"""

import inspect
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from app.registry import UserError, find
from routers.contract import Sizes
from routers.router import Router

KINDS = ("score", "select", "weigh", "drop", "balance", "experts", "activation")
FOLDERS = {kind: f"router/{kind}" for kind in KINDS[:4]} | {"activation": "experts/activation"}
# that parts are tried out at
SIZES = Sizes(dim=16, num_experts=8, top_k=2, num_layers=2, vocab_size=64)


@cache
def defaults(kind: str, name: str) -> dict[str, object]:
    """What the YAML of a part says; `k: null` becomes the layout's.

    Raises:
        UserError: there is no such YAML, or a balance term's does not nest under its own name.
    """
    path = _yaml(kind, name)
    referred_to = {"model": {"hidden_dim": SIZES.dim}, "trainer": {"max_steps": 100}, "seed": 0}
    around_part = OmegaConf.create({**referred_to, "part": OmegaConf.load(path)})
    values: Any = OmegaConf.to_container(around_part, resolve=True)["part"]  # type: ignore[index, call-overload]
    if kind == "balance":
        if set(values) != {name}:
            raise UserError(
                f"{path}: a balance term nests under its own name: {name}: {{name: {name}, ...}}"
            )
        values = values[name]
    return {**values, "k": SIZES.top_k} if values.get("k", 0) is None else values


def _yaml(kind: str, name: str) -> Path:
    """Beside the package of the class, or inside it."""
    package = Path(inspect.getfile(sys.modules[find(kind, name).__module__.partition(".")[0]]))
    path = f"conf/{FOLDERS.get(kind, kind)}/{name}.yaml"
    found = next(
        (folder / path for folder in list(package.parents)[:2] if (folder / path).exists()), None
    )
    if found is None:
        raise UserError(f"{kind} {name}: has no {path}")
    return found


def build_part(kind: str, name: str, sizes: Sizes = SIZES) -> Any:
    """The part with the values of its YAML.

    Raises:
        ValueError: they do not fit the sizes.
    """
    values = {key: value for key, value in defaults(kind, name).items() if key != "name"}
    positional = {"experts": [sizes.dim], "activation": []}.get(kind, [sizes])
    return find(kind, name)(*positional, **values)


def router_of(sizes: Sizes = SIZES, *, score: str, select: str, weigh: str, drop: str) -> Router:
    """A router of these parts, each with the values of its YAML.

    Raises:
        ValueError: the parts cannot go together.
    """
    part = partial(build_part, sizes=sizes)
    return Router(
        part("score", score),
        part("weigh", weigh),
        part("select", select),
        part("drop", drop),
        sizes,
    )
