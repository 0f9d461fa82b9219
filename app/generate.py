"""`python -m app.generate RUN --prompt TEXT`: continues a text with a run's newest checkpoint, or with one of them."""

import argparse
import sys
from pathlib import Path

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.registry import UserError


def main(arguments: list[str]) -> None:
    """Prints prompt and continuation."""
    parser = argparse.ArgumentParser(prog="python -m app.generate", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=100, help="how many")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.temperature < 0 or asked.tokens < 1:
        raise UserError("--temperature must be at least 0 and --tokens at least 1")
    import torch  # torch takes seconds to import, and --help needs none of it

    from app.analysis.continuation import continuation
    from app.runs.read import read_run

    run = read_run(asked.run)
    text = continuation(
        run.model,
        run.text.tokenizer,
        asked.prompt,
        num_tokens=asked.tokens,
        temperature=asked.temperature,
        window=run.seq_len,
        generator=torch.Generator().manual_seed(asked.seed),
    )
    print(asked.prompt + text)


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
