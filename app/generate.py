"""`python -m app.generate RUN --prompt TEXT`: continues a text with a run's newest checkpoint, or
with another one.

The text appears as it is written, up to the end of its document, to one of the texts `--stop`, or
to `--max-tokens`. `--prompts FILE` continues many: a text a line, or a JSON object with a `prompt`
a line where the file's name ends in `.jsonl`. Prompt and continuation come out as a JSON object a
line.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.registry import UserError
from app.training.files import is_unicode, lines_of


def main(arguments: list[str]) -> None:
    """Prints prompt and continuation."""
    args = _parser().parse_args(arguments)
    _check(args)
    # torch takes seconds to import, and --help needs none of it
    from app.analysis.continuation import Sampling

    try:
        sampling = Sampling(args.temperature, args.top_k, args.top_p)
    except ValueError as error:
        raise UserError(f"--{str(error).replace('_', '-', 1)}") from error
    (_many if args.prompts else _one)(args, sampling)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.generate", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt")
    given.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a text a line, or .jsonl with a `prompt` a line",
    )
    parser.add_argument("--max-tokens", type=int, default=100, help="of a continuation")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest token"
    )
    parser.add_argument(
        "--top-k", type=int, help="draw from that many likeliest tokens; default: from all"
    )
    parser.add_argument(
        "--top-p", type=float, help="draw from the likeliest tokens of this probability together"
    )
    parser.add_argument("--seed", type=int, default=0, help="of each prompt's random numbers")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="prompts that are computed together"
    )
    parser.add_argument("--checkpoint", help="of RUN, such as step_200; default: the newest")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed}: must be a whole number in 0..2**63-1")
    for option in ("max_tokens", "batch_size"):
        if getattr(args, option) < 1:
            raise UserError(
                f"--{option.replace('_', '-')} {getattr(args, option)}: must be at least 1"
            )
    if "" in args.stop:
        raise UserError("--stop: must not be empty; every text begins with that")


def _one(args: argparse.Namespace, sampling: Any) -> None:
    """Prints the text while it is written,
    but for what may become another letter or the beginning of a stop.
    """
    from app.analysis.continuation import written

    try:
        prompt = os.fsencode(args.prompt)
    except UnicodeEncodeError:
        raise UserError(
            "--prompt: holds half of a surrogate pair, which is no letter; leave it out"
        ) from None
    run = _run(args)
    print(prompt.decode(errors="replace"), end="", flush=True)
    shown = 0
    text = ""
    with run.computing(args.dtype):
        steps = written(
            run.model,
            run.text.tokenizer,
            [_plain(prompt, run.text.tokenizer)],
            sampling,
            num_tokens=args.max_tokens,
            window=run.seq_len,
            seed=args.seed,
            stop=args.stop,
        )
        for (text,) in steps:
            safe = len(text.rstrip("\ufffd")) - max(
                (_begun(text, stop) for stop in args.stop), default=0
            )
            print(text[shown:safe], end="", flush=True)
            shown = max(shown, safe)
    print(text[shown:])


def _begun(text: str, stop: str) -> int:
    """How many letters at the end of the text may be the beginning of a stop."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


def _many(args: argparse.Namespace, sampling: Any) -> None:
    from app.analysis.continuation import continuations

    prompts = list(_prompts(args.prompts))
    run = _run(args)
    plain = [_plain(prompt.encode(), run.text.tokenizer) for prompt in prompts]
    with run.computing(args.dtype):
        texts = continuations(
            run.model,
            run.text.tokenizer,
            plain,
            sampling,
            batch_size=args.batch_size,
            num_tokens=args.max_tokens,
            window=run.seq_len,
            seed=args.seed,
            stop=args.stop,
        )
        for prompt, text in zip(prompts, texts, strict=True):
            print(
                json.dumps({"prompt": prompt, "continuation": text}, ensure_ascii=False), flush=True
            )


def _run(args: argparse.Namespace) -> Any:
    from app.runs.read import read_run

    return read_run(args.run, args.checkpoint).on(args.device)


def _prompts(path: Path) -> Iterator[str]:
    """The texts of a file, without empty lines."""
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            yield line
            continue
        try:
            entry = json.loads(line)
            prompt = entry["prompt"] if isinstance(entry, dict) else None
        except (ValueError, KeyError, RecursionError):
            prompt = None
        if not isinstance(prompt, str) or not is_unicode(prompt):
            raise UserError(
                f"{path} line {number}: must be a JSON object with a text `prompt`, "
                f'{{"prompt": "..."}}'
            )
        yield prompt


def _plain(prompt: bytes, tokenizer: Any) -> str | bytes:
    """What the tokenizer takes.

    Raises:
        UserError: the bytes are no text, and it needs text.
    """
    if tokenizer.raw:
        return prompt
    try:
        return prompt.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompt: is not UTF-8 ({error.reason} at byte {error.start}), which its tokenizer "
            "needs"
        ) from error


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
