"""`python -m app.race race=NAME [sizes=[xs,s]] [hydra/launcher=joblib hydra.launcher.n_jobs=2]`: who is better?

Runs the race that conf/race/NAME.yaml describes, going on with what there is of it, and writes its result to
results/NAME. `report=true` writes the result of what has ended and runs nothing; `retry=true` runs again what failed.
"""

import argparse
import sys

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake


def main(arguments: list[str]) -> None:
    """Runs a race to its end."""
    parser = argparse.ArgumentParser(prog="python -m app.race", description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="+", help="race=NAME, and keys of conf/race.yaml")
    asked = parser.parse_intermixed_args(arguments).overrides
    from hydra import compose, initialize_config_dir  # torch takes seconds to import, and --help needs none of it

    from app.config.compose import CONF
    from app.races.run import run

    with initialize_config_dir(str(CONF), version_base="1.3", job_name="race"):
        run(compose("race", asked, return_hydra_config=True), asked)


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
