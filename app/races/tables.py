"""The result of a race as a table: in the terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.table import Table

from app.races.race import Race
from app.races.result import Result, Row, SizeResult, SpeedUp, unequal
from app.races.statistics import Interval
from app.training.markdown import escaped

QUALITY = (
    "contestant",
    "seeds",
    "bits per byte",
    "difference",
    "verdict",
    "active M",
    "total M",
    "FLOPs",
    "x FLOPs",
    "x seconds",
)
BEHAVIOUR = (
    "tokens/s",
    "MB",
    "MaxVio",
    "dead",
    "dropped",
    "k",
    "domain information",
    "learning rate",
)
COLUMNS = (*QUALITY, *BEHAVIOUR)
SHORT = ("contestant", "seeds", "bits per byte", "difference", "verdict", "FLOPs")
LEGEND = """\
Difference to the baseline in bits per byte, paired by seed, with its 95 % interval; verdicts at 5
%, corrected for the number of contestants (Holm). FLOPs of a token as a multiple of the baseline's;
* not matched. x FLOPs and x seconds: what the baseline needs for the same loss, as a multiple of
what the contestant took. ! the learning rate is at the edge of its grid. The share of dropped
assignments and the experts per token, which FLOPs count, are means over the training; MaxVio, dead
experts and mutual information of domain and expert (nats) are of held-out text; all are layer
means."""

# a short run may lack some
ROUTED = ("maxvio", "dead", "drop_rate", "mean_k", "domain_information")


def cells(race: Race, row: Row) -> list[str]:
    """Return a row in words, one for each of COLUMNS."""
    start = [row.contestant, f"{len(row.seeds)}"]
    means = row.means
    if means is None:
        state = "failed" if row.failed else "not run yet"
        return [*start, "", "", state, *[""] * (len(COLUMNS) - 5)]
    if row.contestant == race.baseline:
        compared = ["", "baseline"]
    elif row.difference is None:
        compared = ["", ""]
    else:
        difference = row.difference.of(race.measure)
        compared = [told(difference, 3, sign=True), row.difference.verdict]
    flops = ""
    if means.cost is not None:
        mark = "*" if unequal(race, row) else ""
        flops = f"{means.cost['active_flops']:.2f}{mark}"
    times_flops, times_seconds = _speed_up(row.speed_up)
    speed = f"{1 / means.seconds_per_token:,.0f}" if means.seconds_per_token else ""
    routing = means.routing or {}
    return [
        *start,
        told(means.of(race.measure), 3),
        *compared,
        f"{means.active_params / 1e6:.2f}",
        f"{means.total_params / 1e6:.2f}",
        flops,
        times_flops,
        times_seconds,
        speed,
        f"{means.peak_memory_bytes / 1e6:.0f}",
        *(f"{routing[name]:.2f}" if name in routing else "" for name in ROUTED),
        f"{means.lr:g}{'!' if means.lr_at_grid_edge else ''}",
    ]


def _speed_up(found: SpeedUp | None) -> tuple[str, str]:
    """Return the cells of FLOPs and of seconds; a bound where the loss was not reached."""
    if found is None:
        return "", ""
    if isinstance(found.share, str):
        return f"run {found.share}", ""
    return told(found.flops, 2), told(found.seconds, 2)


def told(value: Interval | None, digits: int, sign: bool = False) -> str:
    """Return a mean with half of its interval."""
    if value is None:
        return ""
    mean = f"{value.mean:{'+' if sign else ''}.{digits}f}"
    return mean if value.half is None else f"{mean} ± {value.half:.{digits}f}"


def noise_line(size: SizeResult) -> str:
    """Return a sentence about the smallest difference that can be seen."""
    noise = size.noise
    if noise is None:
        return "The noise is not known yet: it takes three runs of the baseline."
    seen = " and ".join(f"{value:.3f} with {seeds}" for seeds, value in noise.detectable.items())
    return (
        f"{noise.seeds} seeds of the baseline spread by {noise.spread:.4f} (standard deviation); "
        f"the smallest difference that is seen four times out of five is {seen} seeds, without a "
        "gain from pairing."
    )


def state_line(size: SizeResult) -> str:
    """Return what is missing, and what the runs were made with.

    Another version of torch rounds otherwise, which after some steps is another run.
    """
    line = ""
    if size.missing:
        line += f"Incomplete: {size.missing} runs are missing. "
    if size.torch:
        line += f"Runs by torch {' and '.join(size.torch)}, {' and '.join(size.optimizers)}. "
    return line


def failures(rows: Sequence[Row]) -> list[str]:
    """Return each contestant that has failed, with every reason once."""
    return [f"{row.contestant}: {reason}" for row in rows for reason in row.failed]


def table(race: Race, name: str, size: SizeResult) -> Table:
    """Return the table for the terminal."""
    caption = [state_line(size) + noise_line(size), *failures(size.rows)]
    shown = Table(*SHORT, title=name, caption="\n".join(caption), caption_justify="left")
    for row in ranked(race, size.rows):
        by_column = dict(zip(COLUMNS, cells(race, row), strict=True))
        shown.add_row(*(by_column[column] for column in SHORT))
    return shown


def markdown(race: Race, name: str, result: Result) -> str:
    """Return the page of a race."""
    parts = [f"# {name}\n\n{escaped(race.claim)}\n", LEGEND + "\n", contestants(race)]
    for size, numbers in result.items():
        rows = [cells(race, row) for row in ranked(race, numbers.rows)]
        about = state_line(numbers) + noise_line(numbers)
        parts.append(f"## Size {size}\n\n{about}\n\n{_marked(COLUMNS, rows)}")
        failed = failures(numbers.rows)
        if failed:
            parts.append("".join(f"- {escaped(line)}\n" for line in failed))
        for title, (head, body) in details(race, numbers).items():
            parts.append(f"{title}:\n\n{_marked(head, body)}")
    return "\n".join(parts)


def contestants(race: Race) -> str:
    """Return a Markdown list of the contestants and the overrides that make them."""
    lines = [
        f"- **{escaped(name)}**: {_code(overrides)}\n"
        for name, overrides in race.contestants.items()
    ]
    return "".join(["The contestants, on top of " + _code(race.common) + ":\n\n", *lines])


def _code(overrides: Sequence[str]) -> str:
    """Return overrides as code; what would end the code is escaped instead,
    for it may be text of others.
    """
    return (
        " ".join(escaped(each) if set(each) & {"`", "\n"} else f"`{each}`" for each in overrides)
        or "nothing else"
    )


def _marked(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose heads, and the names in whose first column, may be text of others."""
    named = [[escaped(name), *cells] for name, *cells in rows]
    lines = [list(map(escaped, head)), ["---"] * len(head), *named]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def details(race: Race, numbers: SizeResult) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return head and rows of further tables of a size, by title, without empty ones."""
    values: dict[str, dict[str, Interval]] = {}
    differences: dict[str, dict[str, Interval]] = {}
    for row in ranked(race, numbers.rows):
        if row.means is not None:
            values[row.contestant] = row.means.domains
        if row.difference is not None:
            differences[row.contestant] = row.difference.domains
    tables = {
        "Bits per byte, by domain": _by_domain(values),
        "Difference to the baseline in bits per byte, by domain": _by_domain(
            differences, sign=True
        ),
    }
    return {title: (head, rows) for title, (head, rows) in tables.items() if len(head) > 1}


def _by_domain(
    values: Mapping[str, Mapping[str, Interval]], sign: bool = False
) -> tuple[list[str], list[list[str]]]:
    domains = list(next(iter(values.values()), {}))
    rows = []
    for contestant, by_domain in values.items():
        rows.append([contestant, *(told(by_domain[domain], 3, sign) for domain in domains)])
    return ["contestant", *domains], rows


def comma_separated(result: Result) -> str:
    """Return all sizes in one table.

    A column is a number of the result: `difference.bpb.half` is its place in `result.json`.
    """
    rows = []
    for size, numbers in result.items():
        for row in numbers.rows:
            rows.append({"size": size, **_flat(asdict(row))})
    # Contestants without a run have fewer columns than others.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(value: Mapping[str, object], place: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, inner in value.items():
        if name == "curve":
            continue
        if isinstance(inner, Mapping):
            flat.update(_flat(inner, f"{place}{name}."))
        else:
            flat[place + name] = inner
    return flat


def ranked(race: Race, rows: Sequence[Row]) -> list[Row]:
    """Return the best first; those without a run last."""

    def loss(row: Row) -> float:
        return float("inf") if row.means is None else row.means.of(race.measure).mean

    return sorted(rows, key=loss)
