"""How time grows: with the number of experts at fixed work, a skewed load, the tokens, and the
layers.

Forward and backward of K = 6 experts of width 128 per token, in dim 256; for the layers, a whole
step. The ratio is to 16 experts, to the even load, to the time per token of 1,024 tokens, and to
the time per layer of 2 layers.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

from functools import partial

import torch

from benchmarks import step
from benchmarks.layer import Shape, dtypes, measure
from benchmarks.report import Row, command
from benchmarks.timing import medians


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """Return one row for every size."""
    dtype = dtypes(device)[-1]
    rows: list[Row] = []

    def add(what: str, milliseconds: float, ratio: float) -> None:
        name = str(dtype).removeprefix("torch.")
        rows.append({"what": what, "dtype": name, "ms": milliseconds, "ratio": ratio})

    time = partial(_milliseconds, dtype=dtype, device=device, rounds=3 if quick else 20)
    by_experts = {}
    for number in (16, 64) if quick else (16, 32, 64, 128, 256):
        by_experts[number] = time(number, 4096, 0.0)
        add(f"{number} experts", by_experts[number], by_experts[number] / by_experts[16])

    skewed = time(64, 4096, 1.0)
    add("64 experts, Zipf 1.0", skewed, skewed / by_experts[64])

    per_token = {}
    for number in (1024,) if quick else (1024, 4096, 16384):
        milliseconds = time(64, number, 0.0)
        per_token[number] = milliseconds / number
        add(f"{number} tokens, 64 experts", milliseconds, per_token[number] / per_token[1024])

    per_layer = {}
    for number in (2,) if quick else (2, 4, 8):
        milliseconds = _step_ms(number, dtype, device, quick)
        per_layer[number] = milliseconds / number
        add(f"{number} layers", milliseconds, per_layer[number] / per_layer[2])
    return rows


def _step_ms(layers: int, dtype: torch.dtype, device: str, quick: bool) -> float:
    sizes = step.Sizes(layers=layers, rows=1 if quick else 4)
    work = step.work(*step.CONTENDERS["ours"](sizes), dtype, device, sizes)
    return 1e3 * medians({"step": work}, 1, 2 if quick else 10, device)["step"]


def _milliseconds(
    num_experts: int, tokens: int, zipf: float, dtype: torch.dtype, device: str, rounds: int
) -> float:
    rows = measure(
        Shape(tokens, 256, num_experts, 6, 128), dtype, zipf, rounds // 2, rounds, ["ours"], device
    )
    return float(rows[0]["ms"])


if __name__ == "__main__":
    command("growth", run)
