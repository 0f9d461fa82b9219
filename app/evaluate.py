"""`python -m app.evaluate RUN [data=text data.path=FILE ...] [--split test]`: how well does a run predict a text?

Without overrides the text is the run's own held-out one; with them it is whatever the config group `data` can read, all
of it, cut by the run's tokenizer into rows of the run's length. Prints nats per token, perplexity and bits per byte, in
all and by domain; `--json` prints them for programs.
"""

import argparse  # noqa: I001  app.environment must stand before torch
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import app.environment  # noqa: F401

import torch

from app.compose import composed
from app.data import build_data
from app.data.corpus import Batch
from app.data.module import TokenDataModule
from app.data.sources import SPLITS, Split
from app.data.steps import HeldOut, evenly
from app.errors import exit_on_mistake
from app.metrics import LanguageMetric
from app.trained import Trained, load_run
from app.transformer import Transformer


@torch.no_grad()
def evaluate(model: Transformer, batches: Iterable[Batch], domains: list[str]) -> dict[str, float]:
    """`nats`, `ppl`, `bpb` and `bpb_DOMAIN` of a model in evaluation mode."""
    metric = LanguageMetric(domains)
    for batch in batches:
        nll, _ = model(batch["tokens"], batch["targets"], batch["valid"], batch["document"])
        metric.update(nll, batch["targets"], batch["nbytes"], batch["domain"])
    return {name: value.item() for name, value in metric.compute().items()}


def other_data(run: Trained, overrides: list[str]) -> TokenDataModule:
    """The text that the overrides name, cut as the run's own; the run's own without overrides.

    Raises:
        UserError: the text cannot be read.
    """
    if not overrides:
        return run.data
    length = f"data.seq_len={run.data.seq_len}"
    config = composed([length, *overrides])
    data = build_data(config["data"], run.tokenizer_config(), run.config["seed"])
    data.prepare()
    return data


def held_out(data: TokenDataModule, splits: Iterable[Split], rows: int | None = None) -> Iterator[Batch]:
    """All rows of the splits in batches, or `rows` evenly spaced ones of every domain."""
    corpus = data.prepare()
    for split in splits:
        chosen = evenly(corpus.rows(split, data.seq_len), rows)
        batches = HeldOut(corpus, split, chosen, data.seq_len, data.micro_batch_size, 0, 1)
        yield from (batches[i] for i in range(len(batches)))


def main(arguments: list[str]) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m app.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("overrides", nargs="*", help="data=..., data.path=..., as for train.py")
    parser.add_argument("--split", choices=[*SPLITS, "all"], help="default: val of the run's own text, all of another")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    run = load_run(asked.run)
    data = other_data(run, asked.overrides)
    split = asked.split or ("all" if asked.overrides else "val")
    splits = [name for name in SPLITS if split in (name, "all")]
    values = evaluate(run.model, held_out(data, splits), data.domains)
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
