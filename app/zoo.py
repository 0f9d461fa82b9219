"""`python -m app.zoo`: the table of all registered parts, read from their classes, docstrings and YAMLs.

`--json` for programs, `--markdown` for the README, `--refused` for the pairs that cannot go together and why.
"""

import argparse
import json
import sys
from dataclasses import asdict

from app.config.errors import exit_on_mistake


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m app.zoo", description="Prints all registered parts.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects")
    form.add_argument("--markdown", action="store_true", help="the table of the README")
    form.add_argument("--refused", action="store_true", help="pairs that cannot go together, and why")
    asked = parser.parse_args(arguments)
    from rich.console import Console  # torch takes seconds to import, and --help needs none of it

    from app.pages import catalogue, refused

    if asked.json:
        print(json.dumps([asdict(entry) for entry in catalogue.entries()], indent=1))
    elif asked.markdown:
        print(catalogue.markdown(), end="")
    elif asked.refused:
        print(refused.markdown(), end="")
    else:
        Console().print(catalogue.table())


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
