"""`python -m app.zoo [GROUP ...]`: list the registered parts from their classes, docstrings and
YAMLs.

`--json` for programs, `--markdown` for the README, `--refused` for the pairs that cannot go
together and why.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict

from app.config.errors import exit_on_mistake
from app.registry import UserError, unknown


def main(arguments: list[str]) -> None:
    """Print the parts."""
    parser = argparse.ArgumentParser(
        prog="python -m app.zoo", description="Print the registered parts."
    )
    groups = "router, score, select, weigh, drop, balance, experts or activation; none: all"
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=groups)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects")
    form.add_argument("--markdown", action="store_true", help="the table of the README")
    form.add_argument(
        "--refused", action="store_true", help="pairs that cannot go together, and why"
    )
    options = parser.parse_args(arguments)
    # torch takes seconds to import, and --help needs none of it
    from app.pages import catalogue, refused

    for group in options.groups:
        if group not in catalogue.GROUPS:
            raise UserError(unknown(group, group, catalogue.GROUPS))
    chosen = options.groups or catalogue.GROUPS
    if options.json:
        print(
            json.dumps(
                [asdict(entry) for entry in catalogue.entries() if entry.kind in chosen], indent=1
            )
        )
    elif options.markdown:
        print(catalogue.markdown(), end="")
    elif options.refused:
        print(refused.markdown(), end="")
    else:
        print(catalogue.listing(chosen, min(120, shutil.get_terminal_size((80, 24)).columns)))


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
