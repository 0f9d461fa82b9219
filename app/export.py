"""`python -m app.export RUN --to hf [OUT]`: a run as a folder that Hugging Face's `transformers`
loads.

`hf` chooses the architecture of transformers that computes the same function (docs/export.md) and
refuses a model which none of them computes. `hf-remote` takes any model: its code lies beside it,
in one file that needs nothing of this repository, and it is loaded with `trust_remote_code=True`.
What was written is loaded in a fresh process and its logits on held-out text are compared: only if
they agree to 1e-4 is it called done.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.registry import UserError


def main(arguments: list[str]) -> None:
    """Writes the folder and says how well it agrees."""
    parser = argparse.ArgumentParser(
        prog="python -m app.export", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        nargs="?",
        help="new folder; default: RUN/hf, RUN/hf-remote",
    )
    parser.add_argument("--to", choices=["hf", "hf-remote"], required=True)
    parser.add_argument("--checkpoint", help="of RUN, such as step_200; default: the newest")
    parser.add_argument(
        "--license", default="unknown", help="for the model card, such as apache-2.0"
    )
    asked = parser.parse_intermixed_args(arguments)  # options also before OUT
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "--to: transformers is not installed, which checks what is written; pip install "
            "transformers"
        )
    # torch takes seconds to import, and --help needs none of it
    from app.hub.remote import export_remote
    from app.hub.write import export
    from app.runs.read import read_run

    run = read_run(asked.run, asked.checkpoint)
    out = asked.out or run.folder / asked.to
    kind, difference = {"hf": export, "hf-remote": export_remote}[asked.to](run, out, asked.license)
    print(f"{out}: {kind}, logits equal to {difference:.1g} on held-out text")


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
