"""`python -m app.race race=NAME [sizes=[xs,s]] [hydra/launcher=joblib hydra.launcher.n_jobs=2]`:
who is better?

Runs the race that conf/race/NAME.yaml describes, going on with what there is of it, and writes its
result to results/NAME. `report=true` writes the result of what has ended and runs nothing;
`retry=true` runs again what failed.
"""

import argparse
import sys
from typing import Any

import app.config.environment  # noqa: F401  before torch
from app.config.errors import exit_on_mistake
from app.config.overrides import key_of


def main(arguments: list[str]) -> None:
    """Runs a race to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m app.race", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("overrides", nargs="+", help="race=NAME, and keys of conf/race.yaml")
    overrides = parser.parse_intermixed_args(arguments).overrides
    # torch takes seconds to import, and --help needs none of it
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from app.config.compose import CONF
    from app.races.race import require_own_settings
    from app.races.run import run

    with initialize_config_dir(str(CONF), version_base="1.3", job_name="race"):
        config = compose("race", overrides, return_hydra_config=True)
        hydra = [
            override for override in overrides if key_of(override).partition(".")[0] == "hydra"
        ]
        plain = compose("race", ["~race", *hydra], return_hydra_config=True)
        settings: Any = [
            OmegaConf.to_container(each.hydra, resolve=False) for each in (config, plain)
        ]
        require_own_settings(str(config.hydra.runtime.choices.race), *settings)
        run(config, overrides)


if __name__ == "__main__":
    with exit_on_mistake():
        main(sys.argv[1:])
