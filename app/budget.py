"""`python -m app.budget [--json] [--convention NAME] OVERRIDES`: what `python train.py OVERRIDES`
costs.

Prints parameters, FLOPs per token and bytes; `app.cost.budget` defines them and the conventions of
counting FLOPs.
"""

import argparse
import json
import sys
from dataclasses import asdict

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.registry import UserError, unknown


def main(arguments: list[str]) -> None:
    """Prints the budget of the config that the overrides compose."""
    parser = argparse.ArgumentParser(
        prog="python -m app.budget", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument(
        "--convention", default="real", help="of counting FLOPs: real, causal, paper, paper_real"
    )
    parser.add_argument("--json", action="store_true", help="numbers for programs")
    asked = parser.parse_intermixed_args(arguments)  # options also before overrides
    # torch takes seconds to import, and --help needs none of it
    from rich.console import Console

    from app.config.compose import composed
    from app.cost.budget import CONVENTIONS, budget_of
    from app.cost.memory import table

    if asked.convention not in CONVENTIONS:
        raise UserError(unknown(f"--convention={asked.convention}", asked.convention, CONVENTIONS))
    budget, memory, fit = budget_of(composed(asked.overrides), asked.convention)
    if asked.json:
        print(
            json.dumps(
                budget.as_dict() | {"bytes": memory.as_dict(), "fits": asdict(fit)}, indent=2
            )
        )
        return
    Console().print(budget.table(), table(memory, fit))


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
