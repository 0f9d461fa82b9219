"""`python -m app.evaluate RUN [data=text data.path=FILE ...] [--split test]`: how well does a run
predict a text?

RUN is the folder of a run or one of its checkpoints. Overrides act on the `data` of its config:
without any the text is the run's own held-out one; with data=... or data.path=... it is whatever
can be read there, all of it, cut by the run's tokenizer. Prints nats per token, perplexity and bits
per byte, in all and by domain; `--json` prints them for programs.

A row begins anew wherever the one before ended, so that the first tokens of a row are predicted
from little. With `--stride N` every window of a document begins N tokens after the one before and
predicts its last N tokens only, the first one all of its tokens: slower, and closer to what the
model knows.

Benchmarks such as LAMBADA or BLiMP are run by lm-eval: `python -m app.analysis.harness --help`.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.data.sources import SPLITS
from app.registry import UserError

if TYPE_CHECKING:
    from app.data.corpus import Batch

# for programs, and in words
Figures = tuple[dict[str, Any], list[str]]


def main(arguments: list[str]) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m app.evaluate", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("overrides", nargs="*", help="data=..., data.path=..., as for train.py")
    parser.add_argument(
        "--split",
        choices=[*SPLITS, "all"],
        help="default: val of the run's own text, all of another",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from window to window; default: rows of the run",
    )
    parser.add_argument("--checkpoint", help="of RUN, such as step_200; default: the newest")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_intermixed_args(arguments)  # options also before overrides
    if asked.stride is not None and asked.stride < 1:
        raise UserError(f"--stride {asked.stride}: must be at least 1")
    values, lines = _likelihood(asked)
    print(json.dumps(values, indent=2) if asked.json else "\n".join(lines))


def _likelihood(asked: argparse.Namespace) -> Figures:
    # Importing torch takes seconds, and --help needs none of it.
    from app.analysis.likelihood import evaluate, strided
    from app.runs.read import read_run

    run = read_run(asked.run, asked.checkpoint).on(asked.device)
    data = run.data(asked.overrides)
    split = asked.split or ("val" if data.corpus_fingerprint == run.text.fingerprint else "all")
    splits = [name for name in SPLITS if split in (name, "all")]
    rows: Iterable[Batch] = data.held_out(splits)
    if asked.stride is not None:
        if asked.stride > run.seq_len:
            raise UserError(
                f"--stride {asked.stride}: must be in 1..{run.seq_len}, data.seq_len: no token is "
                "left out"
            )
        parts = (
            strided(data.held_out([name]), run.seq_len, asked.stride, data.micro_batch_size)
            for name in splits
        )
        rows = chain.from_iterable(parts)
    values = evaluate(run.model, rows, data.domains)
    first = (
        f"{run.checkpoint} on {split}: {values['nats']:.4f} nats per token, perplexity "
        f"{values['ppl']:.2f}"
    )
    named = {
        name.removeprefix("bpb").lstrip("_"): value
        for name, value in values.items()
        if name.startswith("bpb")
    }
    lines = [
        f"{value:8.4f} bits per byte  {name or 'mean over domains'}"
        for name, value in named.items()
    ]
    return values, [first, *lines]


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
