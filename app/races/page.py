"""Write the result of a race into its folder.

`README.md` and one figure for each size are for the repository. The rest (`result.json`,
`table.csv`, further figures and `index.html`, which needs no other file) follows from the records
as well, and git ignores it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from app.races.pictures import pictures
from app.races.race import Race
from app.races.result import Result, SizeResult
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


def write_result(folder: Path, race: Race, result: Result) -> None:
    """Write every file that follows from the records of a race."""
    plain = {size: asdict(numbers) for size, numbers in result.items()}
    drawn = {size: pictures(race, numbers) for size, numbers in result.items()}
    write_whole(folder / "result.json", json.dumps(plain, indent=1) + "\n")
    write_whole(folder / "README.md", readme(race, folder.name, result))
    write_whole(folder / "table.csv", comma_separated(result))
    write_whole(folder / "index.html", _html(race, folder.name, result, drawn))
    for size, images in drawn.items():
        for name, image in images.items():
            write_whole(folder / f"{size}_{name}.png", image)


def readme(race: Race, name: str, result: Result) -> str:
    """Return the Markdown page of a race, with the figure of each size."""
    figures = [f"\n![differences at size {size}]({size}_differences.png)\n" for size in result]
    return markdown(race, name, result) + "".join(figures)


def _html(race: Race, name: str, result: Result, drawn: Mapping[str, Mapping[str, bytes]]) -> str:
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


def _section(race: Race, size: str, numbers: SizeResult, images: Mapping[str, bytes]) -> str:
    quality = []
    behaviour = []
    for row in ranked(race, numbers.rows):
        texts = cells(race, row)
        # The verdict is the class of the row, which the page colours.
        verdict = row.difference.verdict if row.difference else ""
        quality.append((texts[: len(QUALITY)], verdict))
        behaviour.append(([row.contestant, *texts[len(QUALITY) :]], ""))
    parts = [
        f"<h2>Size {escape(size)}</h2>",
        f"<p>{escape(state_line(numbers) + noise_line(numbers))}</p>",
        *(f"<p>{escape(line)}</p>" for line in failures(numbers.rows)),
        _table(QUALITY, quality),
    ]
    for name, image in images.items():
        data = base64.b64encode(image).decode()
        parts.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
    parts.append(f"<p>{OF_THE_RUNS}:</p>{_table(('contestant', *BEHAVIOUR), behaviour)}")
    for title, (head, rows) in details(race, numbers).items():
        parts.append(f"<p>{escape(title)}:</p>{_table(head, [(row, '') for row in rows])}")
    return "".join(parts)


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
