"""`python -m app.report RUN [OTHER]`: what the experts of a run do, as one page that needs no
server and no network.

Writes `RUN/report/index.html` (held-out text coloured by expert, experiments on the experts,
statistics by layer, domain x expert, likelihood, curves, budget and config), its pictures as PNG,
and its numbers as `report.json` and `report.csv`. With another run both stand side by side, in
`RUN/report_OTHER/`.
"""

import argparse
import sys
from pathlib import Path

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.registry import UserError


def main(arguments: list[str]) -> None:
    """Writes the report on one run, or on two."""
    parser = argparse.ArgumentParser(
        prog="python -m app.report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument(
        "other", type=Path, metavar="OTHER", nargs="?", help="another one, to stand beside it"
    )
    parser.add_argument("--checkpoint", help="of RUN, such as step_200; default: the newest")
    parser.add_argument("--rows", type=int, default=32, help="held-out rows of every domain")
    parser.add_argument("--quick", action="store_true", help="without the experiments")
    asked = parser.parse_args(arguments)
    if asked.rows < 1:
        raise UserError(f"--rows {asked.rows}: must be at least 1")
    # torch takes seconds to import, and --help needs none of it
    from app.analysis.page import write_report
    from app.analysis.report import measure
    from app.runs.read import read_run

    runs = [
        read_run(asked.run, asked.checkpoint),
        *([read_run(asked.other)] if asked.other else []),
    ]
    for run, path in zip(runs, (asked.run, asked.other), strict=False):
        if not run.model.num_experts:
            raise UserError(f"{path}: is a dense model, it has no experts to report")
    name = "_".join(["report", *(run.folder.name for run in runs[1:])])
    print(
        write_report(
            runs[0].folder / name, [measure(run, asked.rows, not asked.quick) for run in runs]
        )
    )


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
