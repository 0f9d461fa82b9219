"""`python -m benchmarks [--quick] [--json FILE]`: the layer and the whole step, beside their peers, in one process."""

import app.environment  # noqa: F401  isort: skip  before torch

import argparse
import json
from pathlib import Path

from benchmarks import layer, step
from benchmarks.timing import table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape and few steps, under a minute when quiet")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    print("Layer: forward and backward\n")
    rows = {"layer": layer.run(arguments.quick, arguments.device)}
    print("Whole training step\n")
    sizes = step.Sizes(rows=2) if arguments.quick else step.Sizes()
    counts = (2, 5) if arguments.quick else (60, 20)
    rows["step"] = [row for dtype in layer.dtypes(arguments.device)
                    for row in step.measure(sizes, dtype, *counts, device=arguments.device)]  # fmt: skip
    print(table(rows["step"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
