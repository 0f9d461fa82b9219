"""Equal cost: finds the experts' width (and number) with which a run costs what another one costs.

    match.reference=experts=coarse  match.by=active_flops     the run with these overrides instead
    match.reference=NAME                                      the run runs/NAME; a path: its
        config.yaml

FLOPs and parameters are the exact ones of `app.cost.budget`, in its convention `real`. They rise
with the width and with the number of experts, so both are found by bisection: the width answers for
the first cost, the number for the second.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

from app.config.compose import Config, composed
from app.config.overrides import combined
from app.config.saved import CONFIG, RUNS, read_config
from app.cost.budget import Budget, on_meta
from app.registry import UserError, unknown

By = Literal["active_flops", "total_params", "both"]
COSTS: dict[str, Callable[[Budget], float]] = {
    "active_flops": lambda budget: budget.flops_per_token_forward,
    "total_params": lambda budget: budget.total_params,
}
WIDTHS = ("hidden_dim", "hidden_dims")
NUMBERS = ("num_experts", "num_ffn")
CLOSE = 0.005
# widths that bfloat16 kernels like; given up where steps of 8 are too coarse
ALIGNED = 8
# times as wide, or as many experts, as in the config
MOST = 8


def matched(config: Config, overrides: Sequence[str] = ()) -> Config:
    """The config with the widths that make it cost what `match.reference` costs; itself without a
    reference.

    Args:
        config: of this run, resolved.
        overrides: this run's own, which a reference given as overrides starts from.

    Raises:
        UserError: the reference does not exist, or no width brings the costs within 0.5 %.
    """
    reference = config["match"]["reference"]
    by = config["match"]["by"]
    if reference is None:
        return config
    if by not in get_args(By):
        raise UserError(unknown(f"match.by={by}", str(by), get_args(By)))
    return brought_to(
        config, _reference(str(reference), overrides), by, f"match.reference={reference}"
    )


def brought_to(config: Config, reference: Config, by: By, key: str) -> Config:
    """The config with the widths that make it cost what another one costs; `key` begins what is
    said if none does.

    Raises:
        UserError: no width brings the costs within 0.5 %.
    """
    target = budget(reference)
    goals = {name: COSTS[name](target) for name in (COSTS if by == "both" else [by])}
    for solved in _solutions(config, goals):
        error, name = _error(solved, goals)
        if error < CLOSE:
            return solved
    raise UserError(
        f"{key}: no width of experts={config['experts']['name']} has its {name} within "
        f"{CLOSE:.1%}; the nearest has {_cost(solved, name):,.0f}, not {goals[name]:,.0f}"
    )


def _reference(text: str, overrides: Sequence[str]) -> Config:
    """The config that `match.reference` names."""
    if "=" in text:
        kept = [override for override in overrides if not override.startswith("match.")]
        return composed(combined(kept, text.split()))
    path = Path(text) if text.endswith((".yaml", ".yml")) else RUNS / text / CONFIG
    if not path.exists():
        raise UserError(
            f"match.reference={text}: {path} does not exist; name a run, a config.yaml or overrides"
        )
    return read_config(path)


def _solutions(config: Config, goals: dict[str, float]) -> Iterator[Config]:
    """The config as it is, with aligned widths, and with any widths."""
    yield config
    for step in (ALIGNED, 1):
        yield _solved(config, goals, step * config["experts"].get("segments", 1))


def _solved(config: Config, goals: dict[str, float], step: int) -> Config:
    """Return the config whose costs come nearest with widths that are multiples of `step`."""
    width = _knob(config, WIDTHS)
    number = _knob(config, NUMBERS)
    if width is None:
        raise UserError(
            f"match.reference: experts={config['experts']['name']} has no {' or '.join(WIDTHS)} to "
            "solve"
        )
    cost, *more = goals
    if not more or number is None:
        return _with_width(config, width, step, cost, goals[cost])
    numbers = _numbers(config, number)

    def with_number(experts: int) -> Config:
        return _with_width(_changed(config, number, experts), width, step, cost, goals[cost])

    def second_cost(experts: int) -> float:
        return _cost(with_number(experts), more[0])

    place = bisect_left(numbers, goals[more[0]], key=second_cost)
    # The steps of the width bend the cost a little, so neighbours are tried, too.
    near = [with_number(experts) for experts in numbers[max(0, place - 2) : place + 2]]
    return min(near, key=lambda solved: _error(solved, goals)[0])


def _with_width(config: Config, width: str, step: int, cost: str, goal: float) -> Config:
    """Return the config with the width, a multiple of `step`, whose cost comes nearest to the goal.

    Widths of several sizes keep their proportions.
    """
    value = config["experts"][width]
    mean = fmean(value) if isinstance(value, list) else value

    def at(units: int) -> Config:
        if not isinstance(value, list):
            return _changed(config, width, units * step)
        widths = [max(1, round(part * units / mean)) * step for part in value]
        return _changed(config, width, widths)

    most = max(2, round(MOST * mean / step))
    units = range(1, most + 1)
    place = bisect_left(units, goal, key=lambda number: _cost(at(number), cost))
    near = [at(number) for number in units[max(0, place - 1) : place + 1]]
    return min(near, key=lambda solved: abs(_cost(solved, cost) / goal - 1))


def _numbers(config: Config, number: str) -> range:
    """Return the numbers of experts to choose from: whole groups, enough for a token."""
    group = config["experts"].get("group_size", 1)
    fewest = config["experts"]["top_k"] if number == "num_experts" else 1
    first = math.ceil(fewest / group) * group
    return range(first, MOST * config["experts"][number] + 1, group)


def _knob(config: Config, names: tuple[str, ...]) -> str | None:
    """Return which of these keys the layout has."""
    for name in names:
        if name in config["experts"]:
            return name
    return None


def _changed(config: Config, knob: str, value: int | list[int]) -> Config:
    return config | {"experts": config["experts"] | {knob: value}}


def _error(config: Config, goals: dict[str, float]) -> tuple[float, str]:
    """The largest relative difference, and of which cost."""
    return max((abs(_cost(config, name) / goal - 1), name) for name, goal in goals.items())


def _cost(config: Config, name: str) -> float:
    return COSTS[name](budget(config))


def budget(config: Config) -> Budget:
    """What the model of a config costs on its rows."""
    return Budget.of(on_meta(config), config["data"]["seq_len"])
