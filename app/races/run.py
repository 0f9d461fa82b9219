"""A race from its file to its result."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from app.races.launch import launch
from app.races.page import write_result
from app.races.plan import Plan
from app.races.race import chosen_sizes, fingerprint, read_race, with_inherited_overrides
from app.races.records import RESULTS, begin, read_records, read_seconds, write_records
from app.races.result import result_of
from app.races.tables import table
from app.registry import UserError
from app.training.messages import console, say


def run(config: DictConfig, overrides: list[str]) -> None:
    """Runs all members that have not ended, and writes the result.

    Raises:
        UserError: the race is not well described, or has changed since it began.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for key in ("keep", "retry", "report"):
        if not isinstance(plain[key], bool):
            raise UserError(f"{key}={plain[key]}: must be true or false")
    name = str(config.hydra.runtime.choices.race)
    values = plain["race"]
    if not re.fullmatch(r"[\w-]+", name) or not isinstance(values, dict):
        raise UserError(f"race={name}: must be the name of a file in conf/race")
    values = with_inherited_overrides(values)
    race = read_race(values)
    sizes = chosen_sizes(race, plain["sizes"])
    begin(name, values, fingerprint(values))
    say(
        f"{name}: {len(race.contestants)} contestants at {', '.join(sizes)}; bringing them to "
        "equal cost"
    )
    plan = Plan(race, sizes)
    for entry in plan.entries:
        if entry.refused:
            say(f"{entry.contestant} at {entry.size} is refused: {entry.refused}")
    if not config.report:
        _run_missing(plan, config.retry, overrides)
    lines = write_records(name, plan, read_records())
    result = result_of(race, lines, read_seconds(RESULTS / name))
    write_result(RESULTS / name, race, result)
    for size, numbers in result.items():
        console.print(table(race, f"{name}, size {size}", numbers))
    say(f"written to {RESULTS / name}")


def _run_missing(plan: Plan, retry: bool, overrides: list[str]) -> None:
    """Run members until none is missing.

    Learning rates follow from the members that tune them, so each round knows more members than the
    one before.

    Args:
        plan: The members of the race.
        retry: Whether members that have failed run again, once.
        overrides: Those of the race.
    """
    records = read_records(retry)
    members = plan.missing(records)
    while members:
        # Some members start from the runs of others, which come first and keep their folders.
        first = plan.first(members, records)
        if first:
            launch(first, [*overrides, "keep=true"])
        else:
            launch(members, overrides)
        records = read_records()
        members = plan.missing(records)
