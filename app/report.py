"""`python -m app.report RUN`: what the experts of a run do, as one page that needs no server and no network.

Writes `RUN/report/index.html` (held-out text coloured by expert with a layer switch and hover, experiments on the
experts, statistics by layer, domain x expert, likelihood), its pictures as PNG, and its numbers as `report.json` and
`report.csv`.
"""

import argparse
import sys
from pathlib import Path

import app.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.registry import UserError


def main(arguments: list[str]) -> None:
    """Writes the report of one run."""
    parser = argparse.ArgumentParser(prog="python -m app.report", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("--rows", type=int, default=32, help="held-out rows of every domain")
    parser.add_argument("--quick", action="store_true", help="without the experiments")
    asked = parser.parse_args(arguments)
    if asked.rows < 1:
        raise UserError(f"--rows {asked.rows}: must be at least 1")
    from app.analysis.report import measure, write_report  # torch takes seconds to import, and --help needs none of it
    from app.runs.read import read_run

    run = read_run(asked.run)
    if not run.model.num_experts:
        raise UserError(f"{asked.run}: is a dense model, it has no experts to report")
    print(write_report(run.folder / "report", measure(run, asked.rows, experiments=not asked.quick)))


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
