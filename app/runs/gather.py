"""`python -m app.runs.gather runs/NAME/checkpoints/step_N.ckpt FILE.ckpt`: one file of a checkpoint
in parts.

The file is what a run writes under `trainer.checkpoint_format=file`, with its sum beside it.
"""

import argparse
import sys
from pathlib import Path

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.registry import UserError
from app.training.checkpoints import is_checkpoint, read_checkpoint, write_atomically


def main(arguments: list[str]) -> None:
    """Writes the file.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or the file exists.
    """
    parser = argparse.ArgumentParser(
        prog="python -m app.runs.gather", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="runs/NAME/checkpoints/step_N.ckpt"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="new file, ends in .ckpt")
    asked = parser.parse_args(arguments)
    if not is_checkpoint(asked.checkpoint):
        raise UserError(
            f"{asked.checkpoint}: is no checkpoint; give one like "
            "runs/NAME/checkpoints/step_100.ckpt"
        )
    if asked.file.exists():
        raise UserError(f"{asked.file}: exists; choose another name")
    if asked.file.suffix != ".ckpt":
        raise UserError(f"{asked.file}: must end in .ckpt, as all checkpoints do")
    write_atomically(read_checkpoint(asked.checkpoint), asked.file)
    print(f"{asked.file}: {asked.file.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
