"""Tokens per second of a model that writes: with what it remembers of the positions before, and
with all computed anew.

200 tokens of the default model with new weights, each the likeliest one. The ratio is to one prompt
computed anew. The products alone of one prompt, with the matrices that a token sees, are what no
way can go below.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.nn import functional

from app.analysis.continuation import GREEDY, next_tokens
from app.config.compose import composed
from app.model.assemble import build_model
from app.model.transformer import Transformer
from benchmarks.report import Row, command
from benchmarks.timing import medians

VOCAB = 2048
WINDOW = 256
TOKENS = 200


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row for every way and number of prompts."""
    model = build_model(composed([]), VOCAB).eval().to(device)
    tokens = 4 if quick else TOKENS
    ways = {
        (how, rows): partial(_write, model, rows, tokens, how == "remembered")
        for how in ("computed anew", "remembered")
        for rows in (1, 8)
    }
    seconds = medians(
        ways | {("products alone", 1): partial(_products, model, tokens)},
        1,
        1 if quick else 5,
        device,
    )
    first = next(iter(seconds.values()))
    return [
        {
            "what": f"{how}, {rows} prompts",
            "tokens_per_s": rows * tokens / each,
            "ratio": rows * first / each,
        }
        for (how, rows), each in seconds.items()
    ]


def _write(model: Transformer, rows: int, tokens: int, remember: bool) -> None:
    prompts = [[1, 2, 3, 4]] * rows
    steps = next_tokens(
        model, prompts, GREEDY, window=WINDOW, seed=0, size=VOCAB, remember=remember
    )
    for _ in islice(steps, tokens):
        pass


@torch.no_grad()
def _products(model: Transformer, tokens: int) -> None:
    blocks: list[Any] = [*model.blocks]
    routed = [block.ffn.experts.routed for block in blocks]
    common = [
        linear.weight for block in blocks for linear in (block.attention.qkv, block.attention.out)
    ]
    for number in range(tokens):
        for matrix in [*common, model.head.weight]:
            functional.linear(matrix[:1], matrix)
        for stack in routed:
            for expert in range(model.routers()[0].top_k):
                for weight in (stack.w_in, stack.w_out):
                    matrix = weight[(number + expert) % len(weight)].T
                    functional.linear(matrix[:1], matrix)


if __name__ == "__main__":
    command("generation", run)
