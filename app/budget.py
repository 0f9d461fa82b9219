"""`python -m app.budget [--json] [--convention=NAME] OVERRIDES`: what `python train.py OVERRIDES` costs.

Prints parameters, FLOPs per token and bytes; `app.cost.budget` defines them and the conventions of counting FLOPs.
"""

import app.environment  # noqa: F401, I001  before torch

import json
import sys
from typing import Any, get_args

from rich.console import Console

from app.config.compose import composed
from app.config.errors import exit_on_mistake
from app.cost.budget import Convention, budget_of
from app.registry import UserError, unknown


def main(arguments: list[str]) -> None:
    """Prints the budget of the config that the overrides compose."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    convention: Any = next((f.partition("=")[2] for f in flags if f.startswith("--convention=")), "real")
    if convention not in get_args(Convention):
        raise UserError(unknown(f"--convention={convention}", convention, get_args(Convention)))
    config = composed([argument for argument in arguments if argument not in flags])
    budget, memory = budget_of(config, convention)
    if "--json" in flags:
        print(json.dumps(budget.as_dict() | {"bytes": memory.as_dict()}, indent=2))
        return
    Console().print(budget.table(), memory.table())


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
