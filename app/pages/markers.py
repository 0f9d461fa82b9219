"""The parts of a document that code writes: between `<!-- NAME -->` and `<!-- /NAME -->`."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def between(text: str, marker: str) -> str:
    """What stands between the two markers."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", text, flags=re.DOTALL)
    assert found, f"there is no {marker}"
    return found[1]


def replaced(text: str, marker: str, body: str) -> str:
    """The text with another body between the two markers."""
    return re.sub(
        rf"(<!-- {marker} -->\n).*?(<!-- /{marker} "
        r"-->)",
        lambda m: m[1] + body + m[2],
        text,
        flags=re.DOTALL,
    )
