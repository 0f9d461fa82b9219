"""The result of a race as a table: in the terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from app.races.race import Race
from app.races.result import unequal
from app.training.markdown import escaped

Row = Mapping[str, Any]
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
    """A row in words, one for each of COLUMNS."""
    first = [row["contestant"], f"{len(row['seeds'])}"]
    if not row["seeds"]:
        return [
            *first,
            "",
            "",
            "failed" if row["failed"] else "not run yet",
            *[""] * (len(COLUMNS) - 5),
        ]
    routing = row["routing"] or {}
    times = row["speed_up"] or {}
    base = row["contestant"] == race.baseline
    return [
        *first,
        told(row[race.measure], 3),
        "" if base else told(row.get("difference", {}).get(race.measure), 3, sign=True),
        "baseline" if base else row.get("verdict", ""),
        f"{row['active_params'] / 1e6:.2f}",
        f"{row['total_params'] / 1e6:.2f}",
        f"{row['cost']['active_flops']:.2f}{'*' if unequal(race, row) else ''}"
        if row["cost"]
        else "",
        told(times.get("flops"), 2) or _outside(times),
        told(times.get("seconds"), 2),
        f"{1 / row['seconds_per_token']:,.0f}" if row["seconds_per_token"] else "",
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
        *(f"{routing[name]:.2f}" if name in routing else "" for name in ROUTED),
        f"{row['lr']:g}{'!' if row['edge'] else ''}",
    ]


def _outside(times: Mapping[str, Any]) -> str:
    """Where the baseline was not trained so short, or so long."""
    return f"run {times['share']}" if isinstance(times.get("share"), str) else ""


def told(value: Mapping[str, float | None] | None, digits: int, sign: bool = False) -> str:
    """A mean with half of its interval."""
    if not value or value["mean"] is None:
        return ""
    mean = f"{value['mean']:{'+' if sign else ''}.{digits}f}"
    return mean if value["half"] is None else f"{mean} ± {value['half']:.{digits}f}"


def noise_line(size: Mapping[str, Any]) -> str:
    """What can be seen at all."""
    noise = size["noise"]
    if noise is None:
        return "The noise is not known yet: it takes three runs of the baseline."
    seen = " and ".join(f"{value:.3f} with {seeds}" for seeds, value in noise["detectable"].items())
    return (
        f"{noise['seeds']} seeds of the baseline spread by {noise['spread']:.4f} (standard "
        "deviation); the smallest "
        f"difference that is seen four times out of five is {seen} seeds, without a gain from "
        "pairing."
    )


def state_line(size: Mapping[str, Any]) -> str:
    """Whether it is over, and on what it ran;
    other kernels round otherwise, which after some steps is another run.
    """
    left = f"Incomplete: {size['missing']} runs are missing. " if size["missing"] else ""
    made_by = (
        f"Runs by torch {' and '.join(size['torch'])}, {' and '.join(size['optimizers'])}. "
        if size["torch"]
        else ""
    )
    return left + made_by


def failures(size: Mapping[str, Any]) -> list[str]:
    """Who has failed, with every reason once."""
    return [f"{row['contestant']}: {reason}" for row in size["rows"] for reason in row["failed"]]


def table(race: Race, name: str, size: Mapping[str, Any]) -> Table:
    """For the terminal."""
    said = [state_line(size) + noise_line(size), *failures(size)]
    shown = Table(*SHORT, title=name, caption="\n".join(said), caption_justify="left")
    for row in ranked(race, size["rows"]):
        shown.add_row(
            *(
                cell
                for column, cell in zip(COLUMNS, cells(race, row), strict=True)
                if column in SHORT
            )
        )
    return shown


def markdown(race: Race, name: str, result: Mapping[str, Any]) -> str:
    """The page of a race."""
    parts = [f"# {name}\n\n{escaped(race.claim)}\n", LEGEND + "\n", contestants(race)]
    for size, numbers in result.items():
        rows = [cells(race, row) for row in ranked(race, numbers["rows"])]
        parts.append(
            "## Size "
            f"{size}\n\n{state_line(numbers)}{noise_line(numbers)}\n\n{_marked(COLUMNS, rows)}"
        )
        parts += (
            ["".join(f"- {escaped(line)}\n" for line in failures(numbers))]
            if failures(numbers)
            else []
        )
        parts += [f"{text}:\n\n{_marked(*shown)}" for text, shown in details(race, numbers).items()]
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


def details(race: Race, numbers: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Head and rows of further tables of a size, by what they show;
    without those that have nothing to show.
    """
    rows = [row for row in ranked(race, numbers["rows"]) if row["seeds"]]
    domains = {r["contestant"]: r["difference"]["domains"] for r in rows if "difference" in r}
    shown = {
        "Bits per byte, by domain": _by_name({row["contestant"]: row["domains"] for row in rows}),
        "Difference to the baseline in bits per byte, by domain": _by_name(domains, sign=True),
    }
    return {text: (head, rows) for text, (head, rows) in shown.items() if len(head) > 1}


def _by_name(
    rows: Mapping[str, Mapping[str, Any]], sign: bool = False
) -> tuple[list[str], list[list[str]]]:
    names = list(next(iter(rows.values()), {}))
    return ["contestant", *names], [
        [c, *(told(values[n], 3, sign) for n in names)] for c, values in rows.items()
    ]


def comma_separated(result: Mapping[str, Any]) -> str:
    """All sizes in one table, a column for each number of the result:
    `difference.bpb.half` is its place there.
    """
    rows = [
        {"size": size, **_flat(row)} for size, numbers in result.items() for row in numbers["rows"]
    ]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(
        out, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(value: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if name != "curve":
            flat |= (
                _flat(inner, f"{place}{name}.")
                if isinstance(inner, Mapping)
                else {place + name: inner}
            )
    return flat


def ranked(race: Race, rows: Sequence[Row]) -> list[Row]:
    """The best first; those without a run last."""
    return sorted(rows, key=lambda row: row[race.measure]["mean"] if row["seeds"] else float("inf"))
