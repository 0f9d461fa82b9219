"""How fast does everybody in a race train? `python -m benchmarks.race NAME [--sizes xs s]`, on a
quiet machine.

The contestants take steps in turns in one process, with the race's own precision and threads, so
that whatever else the machine does hits all of them alike. The median step of each, divided by its
tokens, goes to results/NAME/seconds.json, from where the race's result takes its times: those of
the runs themselves tell how busy the machine was.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

import argparse
import json
import platform
from functools import partial
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from app.config.compose import CONF
from app.config.errors import exit_on_mistake
from app.races.plan import Member, Plan
from app.races.race import chosen_sizes, read_race, with_inherited_overrides
from app.races.records import RESULTS, SECONDS
from app.registry import UserError
from app.training.files import write_whole
from benchmarks.bare import Bare
from benchmarks.timing import medians


def seconds_per_token(members: list[Member], rounds: int) -> dict[str, float]:
    """Return the seconds of a training token for each contestant of a size."""
    works = {}
    tokens = {}
    for member in members:
        entry = member.entry
        model = Bare(member.overrides, precision=entry.config["trainer"]["precision"])
        works[entry.contestant] = partial(model.next_step, model.batches())
        data = entry.config["data"]
        tokens[entry.contestant] = data["batch_size"] * data["seq_len"]
    torch.set_num_threads(members[0].entry.config["trainer"]["threads"])
    return {name: seconds / tokens[name] for name, seconds in medians(works, 3, rounds).items()}


def measured(name: str, sizes: list[str] | None, rounds: int) -> dict[str, dict[str, float]]:
    """Of a race: by size and contestant."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("race", [f"race={name}"]).race, resolve=True)
        race = read_race(with_inherited_overrides(values))
        plan = Plan(race, chosen_sizes(race, sizes))
        members = [
            plan.member(e, e.config["optimizer"]["lr"], race.seeds[0])
            for e in plan.entries
            if not e.refused
        ]
        if plan.first(members, {}):
            raise UserError(
                f"{name}: its contestants start from other runs, which lie where it has run; run "
                "it first"
            )
        by_size = {
            size: [m for m in members if m.entry.size == size] for size in sizes or race.sizes
        }
        return {size: seconds_per_token(each, rounds) for size, each in by_size.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of a race in conf/race")
    parser.add_argument("--sizes", nargs="+", help="default: all of the race")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each that are timed")
    asked = parser.parse_args()
    found = measured(asked.name, asked.sizes, asked.rounds)
    path = RESULTS / asked.name / SECONDS
    known = json.loads(path.read_text())["seconds_per_token"] if path.exists() else {}
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    write_whole(path, json.dumps(machine | {"seconds_per_token": known | found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    with exit_on_mistake():
        main()
