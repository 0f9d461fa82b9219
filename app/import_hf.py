"""`python -m app.import_hf PATH [run=NAME] [data=...]`: a model of `transformers` as a run,
runs/NAME, at step 0.

PATH is a local folder or a name on the Hub, whose architecture is one of docs/export.md and whose
weights are safetensors. Its logits on random tokens must be ours to 1e-4. The run can be evaluated,
reported, continued (`train.py run=NAME resume=true`), and be what another run begins from
(`init=run init.checkpoint=runs/NAME`, or `init=upcycle` where it is dense). Overrides choose the
text and how it trains, as for train.py.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.config.overrides import last
from app.registry import UserError


def main(arguments: list[str]) -> None:
    """Makes the run and says how well it agrees."""
    parser = argparse.ArgumentParser(
        prog="python -m app.import_hf", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("path", metavar="PATH", help="a folder, or a name on the Hub")
    parser.add_argument("overrides", nargs="*", help="run=NAME, data=..., as for train.py")
    asked = parser.parse_args(arguments)
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "transformers is not installed, which knows what its configs mean; pip install "
            "transformers"
        )
    # torch takes seconds to import, and --help needs none of it
    from app.hub.read import import_run

    name = last(asked.overrides, "run") or Path(asked.path).absolute().name
    typed = [word for word in asked.overrides if not word.startswith("run=")]
    folder, apart = import_run(asked.path, name, typed)
    agrees = (
        ("logits not compared: transformers has no code for it")
        if apart is None
        else f"logits equal to {apart:.1g}"
    )
    print(f"{folder}: {agrees}; go on with python train.py run={name} resume=true")


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
