"""`python -m benchmarks [--quick] [--out FOLDER]`: all of them; without --quick it writes
docs/benchmarks.md.

`benchmarks.text` (tokenising), `benchmarks.race` (steps of the contestants of a race) and
`benchmarks.readability` (figures of the code) are commands of their own.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

import argparse
import inspect
import os
import platform
from pathlib import Path

import torch

from benchmarks import data, generation, growth, layer, loop, memory, routers, startup, step
from benchmarks.report import Row, markdown, write
from benchmarks.timing import table
from experts.grouped.device import is_native

ALL = (layer, growth, step, routers, loop, memory, data, startup, generation)
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    """Runs them one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute; nothing is written to docs/"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="folder for the JSON and the picture of each")
    asked = parser.parse_args()
    found: dict[str, list[Row]] = {}
    for module in ALL:
        name = module.__name__.rpartition(".")[2]
        found[name] = module.run(asked.quick, asked.device)
        print(f"\n{name}: {first_line(name)}\n{table(found[name])}", flush=True)
        if asked.out:
            write(name, found[name], asked.out)
    if not asked.quick:
        PAGE.write_text(page(found, machine(asked.device)), encoding="utf-8")


def first_line(name: str) -> str:
    """Of the docstring of a benchmark."""
    module = next(module for module in ALL if module.__name__.endswith(f".{name}"))
    return (inspect.getdoc(module) or "").splitlines()[0]


def page(found: dict[str, list[Row]], where: str) -> str:
    """The page of the results."""
    about = (
        f"Written by `python -m benchmarks`. {where} Read the ratios; the times belong to the "
        "machine."
    )
    parts = [f"# Benchmarks\n\n{about}\n"]
    parts += [
        f"## {name}\n\n{first_line(name)}\nCommand: `python -m "
        f"benchmarks.{name}`.\n\n{markdown(rows)}\n"
        for name, rows in found.items()
    ]
    return "\n".join(parts)


def machine(device: str) -> str:
    """One sentence about the machine."""
    if device == "cuda":
        return f"Machine: {torch.cuda.get_device_name()}, torch {torch.__version__}."
    cpus = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in cpus.read_text().splitlines()
            if "model name" in line
        ]
        if cpus.exists()
        else []
    )
    low = "with" if is_native(torch.bfloat16) else "without"
    return (
        f"Machine: {len(os.sched_getaffinity(0))} cores of "
        f"{names[0] if names else platform.machine()}, {low} native bfloat16, torch "
        f"{torch.__version__}."
    )


if __name__ == "__main__":
    main()
