"""`python -m app.evaluate RUN [data=text data.path=FILE ...] [--split test]`: how well does a run predict a text?

RUN is the folder of a run or one of its checkpoints. Overrides act on the `data` of its config: without any the text is
the run's own held-out one; with data=... or data.path=... it is whatever can be read there, all of it, cut by the run's
tokenizer. Prints nats per token, perplexity and bits per byte, in all and by domain; `--json` prints them for programs.
"""

import argparse
import json
import sys
from pathlib import Path

import app.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.data.sources import SPLITS


def main(arguments: list[str]) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m app.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("overrides", nargs="*", help="data=..., data.path=..., as for train.py")
    parser.add_argument("--split", choices=[*SPLITS, "all"], help="default: val of the run's own text, all of another")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    from app.analysis.likelihood import evaluate  # torch takes seconds to import, and --help needs none of it
    from app.runs.read import read_run

    run = read_run(asked.run)
    data = run.data(asked.overrides)
    split = asked.split or ("val" if data.corpus_fingerprint == run.text.fingerprint else "all")
    splits = [name for name in SPLITS if split in (name, "all")]
    values = evaluate(run.model, data.held_out(splits), data.domains)
    if asked.json:
        print(json.dumps(values, indent=2))
        return
    print(f"{run.checkpoint} on {split}: {values['nats']:.4f} nats per token, perplexity {values['ppl']:.2f}")
    for name, value in values.items():
        if name.startswith("bpb"):
            print(f"{value:8.4f} bits per byte  {name.removeprefix('bpb').lstrip('_') or 'mean over domains'}")


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
