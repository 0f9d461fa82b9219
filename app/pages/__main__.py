"""`python -m app.pages` (or `make docs`): writes every page, and every table in the README, that
code can make.

The pages and pictures of the races, out of the records of their runs, too.
"""

import app.config.environment  # noqa: F401, I001  before torch

from collections.abc import Callable, Iterator
from pathlib import Path

from app.pages import catalogue, cells, claims, exports, placements, races, refused, tags, weights
from app.pages.markers import ROOT, replaced

# page, marker, what stands between the markers
TABLES: list[tuple[str, str, Callable[[], str]]] = [
    ("README.md", "zoo", catalogue.markdown),
    ("README.md", "races", races.markdown),
    ("docs/claims.md", "claims", claims.markdown),
    ("docs/refused.md", "refused", refused.markdown),
    ("docs/export.md", "exports", exports.markdown),
    ("docs/tags.md", "tags", tags.markdown),
    ("docs/scale.md", "placements", placements.markdown),
    ("docs/cells.md", "cells", cells.markdown),
    ("docs/cells.md", "weights", weights.markdown),
]


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with its tables anew."""
    texts = {page: (ROOT / page).read_text() for page, _, _ in TABLES}
    for page, marker, table in TABLES:
        texts[page] = replaced(texts[page], marker, table())
    yield from ((ROOT / page, text) for page, text in texts.items())


if __name__ == "__main__":
    races.write()
    for path, text in pages():
        path.write_text(text)
