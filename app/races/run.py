"""A race from its file to its result."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from app.races.launch import launch
from app.races.plan import Plan
from app.races.race import chosen_sizes, fingerprint, read_race
from app.races.records import begin, read_records, write_records
from app.training.messages import say


def run(config: DictConfig, overrides: list[str]) -> None:
    """Runs all members that have not ended, and writes the result.

    Raises:
        UserError: the race is not well described, or has changed since it began.
    """
    values: Any = OmegaConf.to_container(config.race, resolve=True)
    name, race = config.hydra.runtime.choices.race, read_race(values)
    plan = Plan(race, chosen_sizes(race, config.sizes))
    for entry in plan.entries:
        if entry.refused:
            say(f"{entry.contestant} at {entry.size} is refused: {entry.refused}")
    begin(name, values, fingerprint(values))
    retry = config.retry
    while not config.report and (members := plan.missing(read_records(retry))):
        launch(members, overrides)
        retry = False
    write_records(name, plan.known(read_records()), read_records())
