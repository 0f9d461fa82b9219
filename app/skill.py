"""`python -m app.skill add RUN name=NAME data=...`: low-rank skills on a dense run that stays as it
is, and mixtures.

    add RUN name=french data.weights={wiki_fr:1}      learn one skill alone; kept as
        RUN/skills/french.safetensors
    compose RUN --skills french,python data=...       learn only how to mix them, in a run of its
        own (run=NAME)
    list RUN                                          the skills of a run
    remove RUN NAME                                   delete one
    merge RUN run=NAME french=0.5 python=0.5          a new dense run with constant shares of skills
        in its weights

Everything behind RUN is an override of `train.py`, which both stages are runs of; they go on where
they were stopped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.config.overrides import last
from app.registry import UserError

TRAIN = Path(__file__).parents[1] / "train.py"


def main(arguments: list[str]) -> None:
    """Does what the first word says."""
    parser = argparse.ArgumentParser(
        prog="python -m app.skill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a dense run")
    parser.add_argument("words", nargs="*", help="NAME, NAME=SHARE, or overrides as for train.py")
    parser.add_argument(
        "--skills", default="", help="of compose: their names, with commas; default: all of RUN"
    )
    parser.add_argument(
        "--mixture", help="of compose: a run with a mixture of some of them, to start from"
    )
    args = parser.parse_intermixed_args(arguments)
    WHAT[args.what](args)


def _add(args: argparse.Namespace) -> None:
    # torch takes seconds to import, and --help needs none of it
    from app.runs.stages import add_words, keep

    name = last(args.words, "name")
    if name is None:
        raise UserError("name: missing; python -m app.skill add RUN name=NAME data=...")
    words = add_words(args.run, name, [word for word in args.words if not word.startswith("name=")])
    _train(words)
    print(keep(args.run, name, words))


def _compose(args: argparse.Namespace) -> None:
    from app.runs.stages import compose_words

    _train(compose_words(args.run, args.skills.split(","), args.mixture, args.words))


def _list(args: argparse.Namespace) -> None:
    from rich.console import Console

    from app.runs.library import table

    Console().print(table(args.run))


def _remove(args: argparse.Namespace) -> None:
    from app.runs.library import existing

    if not args.words:
        raise UserError("which one? python -m app.skill remove RUN NAME")
    for path in [existing(args.run, name) for name in dict.fromkeys(args.words)]:
        path.unlink()


def _merge(args: argparse.Namespace) -> None:
    from app.runs.stages import merge, shares_of

    name = last(args.words, "run")
    if name is None:
        raise UserError("run: missing; python -m app.skill merge RUN run=NAME french=0.5")
    print(
        merge(args.run, shares_of(word for word in args.words if not word.startswith("run=")), name)
    )


def _train(words: list[str]) -> None:
    """Ends with the status of `train.py` if that is not 0."""
    if code := subprocess.run([sys.executable, str(TRAIN), *words]).returncode:
        raise SystemExit(code if code > 0 else 128 - code)


WHAT = {"add": _add, "compose": _compose, "list": _list, "remove": _remove, "merge": _merge}

if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
