"""How the layer's time grows: with the number of experts at fixed work, with a skewed load, and with the tokens.

Forward and backward of K = 6 experts of width 128 per token, in dim 256. The ratio is to 16 experts, to the even load,
and to the time per token of 1,024 tokens.
"""

import app.environment  # noqa: F401  isort: skip  before torch

from functools import partial

import torch

from benchmarks.layer import Shape, dtypes, measure
from benchmarks.report import Row, command


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row for every size."""
    dtype = dtypes(device)[-1]
    time = partial(_milliseconds, dtype=dtype, device=device, rounds=3 if quick else 20)
    experts = {number: time(number, 4096, 0.0) for number in ((16, 64) if quick else (16, 32, 64, 128, 256))}
    tokens = {number: time(64, number, 0.0) / number for number in ((1024,) if quick else (1024, 4096, 16384))}
    name = str(dtype).removeprefix("torch.")
    return [
        *({"what": f"{e} experts", "dtype": name, "ms": ms, "ratio": ms / experts[16]} for e, ms in experts.items()),
        {"what": "64 experts, Zipf 1.0", "dtype": name, "ms": (skewed := time(64, 4096, 1.0)),
         "ratio": skewed / experts[64]},
        *({"what": f"{t} tokens, 64 experts", "dtype": name, "ms": each * t, "ratio": each / tokens[1024]}
          for t, each in tokens.items()),
    ]  # fmt: skip


def _milliseconds(num_experts: int, tokens: int, zipf: float, dtype: torch.dtype, device: str, rounds: int) -> float:
    rows = measure(Shape(tokens, 256, num_experts, 6, 128), dtype, zipf, rounds // 2, rounds, ["ours"], device)
    return float(rows[0]["ms"])


if __name__ == "__main__":
    command("growth", run)
