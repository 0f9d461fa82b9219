"""Write the result of a race into its folder.

`README.md` and one figure for each size are for the repository. The rest (`result.json`,
`table.csv`, further figures and `index.html`, which needs no other file) follows from the records
as well, and git ignores it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from app.races.pictures import pictures
from app.races.race import Race
from app.races.tables import (
    BEHAVIOUR,
    LEGEND,
    QUALITY,
    cells,
    comma_separated,
    details,
    failures,
    markdown,
    noise_line,
    ranked,
    state_line,
)
from app.training.files import write_whole

OF_THE_RUNS = "Speed and memory, the routers, and the learning rate"
PAGE = Path(__file__).with_suffix(".html")


def write_result(folder: Path, race: Race, result: Mapping[str, Any]) -> None:
    """Write every file that follows from the records of a race."""
    drawn = {size: pictures(race, numbers) for size, numbers in result.items()}
    write_whole(folder / "result.json", json.dumps(result, indent=1) + "\n")
    write_whole(folder / "README.md", readme(race, folder.name, result))
    write_whole(folder / "table.csv", comma_separated(result))
    write_whole(folder / "index.html", _html(race, folder.name, result, drawn))
    for size, images in drawn.items():
        for name, image in images.items():
            write_whole(folder / f"{size}_{name}.png", image)


def readme(race: Race, name: str, result: Mapping[str, Any]) -> str:
    """Return the Markdown page of a race, with the figure of each size."""
    figures = [f"\n![differences at size {size}]({size}_differences.png)\n" for size in result]
    return markdown(race, name, result) + "".join(figures)


def _html(
    race: Race, name: str, result: Mapping[str, Any], drawn: Mapping[str, Mapping[str, bytes]]
) -> str:
    sections = "".join(
        _section(race, size, numbers, drawn[size]) for size, numbers in result.items()
    )
    page = PAGE.read_text(encoding="utf-8")
    for place, text in {"NAME": name, "CLAIM": race.claim, "LEGEND": LEGEND}.items():
        page = page.replace(f"<!--{place}-->", escape(text))
    return page.replace("<!--CONTESTANTS-->", _contestants(race)).replace("<!--SIZES-->", sections)


def _contestants(race: Race) -> str:
    """Return an HTML list of the contestants and their overrides."""
    common = f"<dt>all of them</dt><dd>{_code(race.common)}</dd>" if race.common else ""
    each = (
        f"<dt>{escape(name)}</dt><dd>{_code(words)}</dd>"
        for name, words in race.contestants.items()
    )
    return f"<dl>{common}{''.join(each)}</dl>"


def _code(overrides: Sequence[str]) -> str:
    return " ".join(f"<code>{escape(override)}</code>" for override in overrides) or "nothing else"


def _section(race: Race, size: str, numbers: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    rows = [(cells(race, row), row.get("verdict", "")) for row in ranked(race, numbers["rows"])]
    more = "".join(
        f"<p>{escape(text)}:</p>{_table(head, [(row, '') for row in others])}"
        for text, (head, others) in details(race, numbers).items()
    )
    shown = "".join(
        f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for name, image in images.items()
    )
    said = escape(state_line(numbers) + noise_line(numbers))
    quality = _table(QUALITY, [(row[: len(QUALITY)], verdict) for row, verdict in rows])
    behaviour = _table(
        ("contestant", *BEHAVIOUR), [([row[0], *row[len(QUALITY) :]], "") for row, _ in rows]
    )
    failed = "".join(f"<p>{escape(line)}</p>" for line in failures(numbers))
    return (
        "<h2>Size "
        f"{escape(size)}</h2><p>{said}</p>{failed}{quality}{shown}<p>{OF_THE_RUNS}:</p>{behaviour}{more}"
    )


def _table(head: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> str:
    """Each row with its verdict."""
    body = "".join(_line("td", row, verdict) for row, verdict in rows)
    return f"<div><table>{_line('th', head)}{body}</table></div>"


def _line(tag: str, texts: Sequence[str], kind: str = "") -> str:
    return (
        f'<tr class="{kind}">'
        + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
        + "</tr>"
    )
