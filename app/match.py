"""Equal cost: solves the experts' width (and number) so that a run costs what another one costs.

    match.reference=experts=coarse  match.by=active_flops     the run with these overrides instead
    match.reference=NAME                                      the run runs/NAME; a path: its config.yaml

FLOPs and parameters are the exact ones of `app.budget`, in its convention `real`. In the width F and the number E of
experts they are a + b F + c E + d F E, which four budgets determine; the solution is checked by a budget of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from omegaconf import OmegaConf

from app.budget import Budget, on_meta
from app.compose import composed
from app.registry import UserError, unknown
from app.runfolder import RUNS

By = Literal["active_flops", "total_params", "both"]
Config = dict[str, Any]
COSTS: dict[str, Callable[[Budget], float]] = {
    "active_flops": lambda budget: budget.flops_per_token_forward,
    "total_params": lambda budget: budget.total_params,
}
WIDTHS, NUMBERS = ("hidden_dim", "hidden_dims"), ("num_experts", "num_ffn")
CLOSE = 0.005
ALIGNED = 8  # widths that bfloat16 kernels like; given up where steps of 8 are too coarse
MOST = 8  # times as wide, or as many experts, as in the config


def matched(config: Config, overrides: Sequence[str] = ()) -> Config:
    """The config with the widths that make it cost what `match.reference` costs; itself without a reference.

    Args:
        config: of this run, resolved.
        overrides: this run's own, which a reference given as overrides starts from.

    Raises:
        UserError: the reference does not exist, or no width brings the costs within 0.5 %.
    """
    chosen = config["match"]
    if chosen["reference"] is None:
        return config
    if chosen["by"] not in get_args(By):
        raise UserError(unknown(f"match.by={chosen['by']}", str(chosen["by"]), get_args(By)))
    target = _budget(_reference(str(chosen["reference"]), overrides))
    names = list(COSTS) if chosen["by"] == "both" else [chosen["by"]]
    wanted = {name: COSTS[name](target) for name in names}
    solved = config
    for tries in range(4):  # more than once where the costs bend
        solved = _solve(solved, wanted) if tries else config
        error, name = max((abs(_cost(solved, name) / goal - 1), name) for name, goal in wanted.items())
        if error < CLOSE:
            return solved
    raise UserError(
        f"match.reference={chosen['reference']}: no width of experts={config['experts']['name']} has its {name} within "
        f"{CLOSE:.1%}; the nearest has {_cost(solved, name):,.0f}, not {wanted[name]:,.0f}"
    )


def _reference(text: str, overrides: Sequence[str]) -> Config:
    """The config that `match.reference` names."""
    if "=" in text:
        kept = [override for override in overrides if not override.startswith("match.")]
        return composed([*_without(kept, text.split()), *text.split()])
    path = Path(text) if text.endswith((".yaml", ".yml")) else RUNS / text / "config.yaml"
    if not path.exists():
        raise UserError(f"match.reference={text}: {path} does not exist; name a run, a config.yaml or overrides")
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[return-value]


def _without(overrides: list[str], stronger: list[str]) -> list[str]:
    """The overrides without those of groups that are chosen again, and of keys inside these groups."""
    groups = [override.lstrip("+~").partition("=")[0] for override in stronger]
    keys = [(override, override.lstrip("+~").partition("=")[0]) for override in overrides]
    return [
        override for override, key in keys if not any(key == g or key.startswith((f"{g}.", f"{g}/")) for g in groups)
    ]


def _solve(config: Config, wanted: dict[str, float]) -> Config:
    """The config whose costs come nearest, as far as they are bilinear; with aligned widths where those are close."""
    width, number = (_knob(config, names) for names in (WIDTHS, NUMBERS))
    if width is None:
        raise UserError(f"match.reference: experts={config['experts']['name']} has no {' or '.join(WIDTHS)} to solve")
    both = len(wanted) == 2 and number is not None
    predict = {name: _bilinear(config, width, number if both else None, name) for name in wanted}
    first, goal = next(iter(wanted.items()))
    group = config["experts"].get("group_size", 1)
    fewest = config["experts"]["top_k"] if number == "num_experts" else 1
    most = MOST * config["experts"][number] if both and number else 0
    numbers = (
        [n / config["experts"][number] for n in range(group, most + 1, group) if n >= fewest]
        if both and number
        else [1]
    )

    def error(at: tuple[float, float]) -> float:
        return max(abs(predict[name](*at) / goal - 1) for name, goal in wanted.items())

    segments = config["experts"].get("segments", 1)
    best: list[tuple[float, float]] = []
    for step in (ALIGNED * segments, segments):
        unit = step / _whole(config, width)
        near = [
            (unit * max(1, round(_root(predict[first], goal, e) / unit) + shift), e)
            for e in numbers
            for shift in (-1, 0, 1)
        ]
        best.append(min((at for at in near if at[0] <= MOST), key=error, default=(1.0, 1.0)))
    at, step = (best[0], ALIGNED * segments) if error(best[0]) < CLOSE else (best[1], segments)
    factors = {width: at[0], number: at[1]} if both and number else {width: at[0]}
    return _changed(config, factors, step)


def _root(predict: Callable[[float, float], float], goal: float, number: float) -> float:
    """The factor on the width at which the cost is the goal, for a factor on the number of experts."""
    low, high = predict(0, number), predict(1, number)
    return (goal - low) / (high - low) if high != low else 1.0


def _bilinear(config: Config, width: str, number: str | None, cost: str) -> Callable[[float, float], float]:
    """The cost by factors on the width and on the number of experts."""
    knobs = [width, number] if number else [width]

    def corner(*factors: float) -> float:
        return _cost(_changed(config, dict(zip(knobs, factors, strict=False)), 1), cost)

    here, wider, more, both = corner(1, 1), corner(2, 1), corner(1, 2), corner(2, 2)

    def predict(factor: float, experts: float) -> float:
        f, e = factor - 1, experts - 1
        return here + f * (wider - here) + e * (more - here) + f * e * (both - more - wider + here)

    return predict


def _knob(config: Config, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in config["experts"]), None)


def _whole(config: Config, knob: str) -> float:
    value = config["experts"][knob]
    return sum(value) / len(value) if isinstance(value, list) else value


def _changed(config: Config, factors: dict[str, float], step: int) -> Config:
    """The config with knobs of its layout multiplied, widths to multiples of `step`."""
    changed = {}
    for knob, factor in factors.items():
        value, unit = config["experts"][knob], step if knob in WIDTHS else 1
        parts = [max(1, round(part * factor / unit)) * unit for part in (value if isinstance(value, list) else [value])]
        changed[knob] = parts if isinstance(value, list) else parts[0]
    return config | {"experts": config["experts"] | changed}


def _cost(config: Config, name: str) -> float:
    return COSTS[name](_budget(config))


def _budget(config: Config) -> Budget:
    return Budget.of(on_meta(config), config["data"]["seq_len"])
