"""The text of a row, and the count of the rows that have none:
told when some have it, an error when none has.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from app.registry import UserError

# rows without one text among them: no more are read
ENOUGH = 10_000
CHATS = ("messages", "conversations", "conversation")
ABSENT = object()


class TextColumn:
    """Takes the text out of the rows of one pass over all rows of a text.

    Args:
        key: the column; with dots it reaches into nested ones.
        what: key and value that name them.
        blank_lines: whether a text may be empty.
    """

    def __init__(self, key: str, what: str, blank_lines: bool) -> None:
        self._key = key
        self._what = what
        self._blank_lines = blank_lines
        self._seen = 0
        self._without: Counter[str] = Counter()
        self._first = ""  # row without text
        self._example: object = {}  # a row without the key

    def text(self, file: Path | str, number: int | None, row: object) -> str | None:
        """The text of a row, which may be a text itself; None if it has none.

        Raises:
            UserError: the first `ENOUGH` rows have none.
        """
        value = row if isinstance(row, str) else _inside(row, self._key)
        reason = self._fault(value)
        self._seen += 1
        if reason is None:
            return str(value)
        self._first = self._first or (f"{file}:{number}" if number else str(file))
        if value is ABSENT:
            self._example = self._example or row
        self._without[reason] += 1
        if self._seen == ENOUGH:
            self._require_one()
        return None

    def finish(self) -> str:
        """After the last row: what is to be said of those without text.

        Raises:
            UserError: none had one.
        """
        self._require_one()
        if not self._without:
            return ""
        return (
            f"{self._what}: {self._without.total():,} of {self._seen:,} rows without text are left "
            f"out ({self._reasons()}), first: {self._first}"
        )

    def _fault(self, value: object) -> str | None:
        """Why a value is no text."""
        if value is ABSENT or value is None:
            return "without the key" if value is ABSENT else "null"
        if not isinstance(value, str):
            return "not a text"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "with half a character (a lone surrogate)"
        return None if value.strip() or self._blank_lines else "empty"

    def _require_one(self) -> None:
        if self._seen > self._without.total():
            return
        rows = f"none of {self._seen:,} rows has text"
        if self._example:
            raise UserError(
                f"data.text_key={self._key}: {rows} under this key, first: {self._first}; "
                f"{self._other()}"
            )
        raise UserError(
            f"{self._what}: {rows} ({self._reasons() or 'it is empty'}); give a file with text"
        )

    def _reasons(self) -> str:
        return ", ".join(f"{number:,} {reason}" for reason, number in self._without.most_common())

    def _other(self) -> str:
        """The way out, by what the row has instead."""
        keys = list(_texts(self._example))
        chats = [
            key
            for key in CHATS
            if isinstance(self._example, dict) and isinstance(self._example.get(key), list)
        ]
        if chats:
            return (
                f"its rows are chats ({chats[0]}): join the turns of each to one text, as "
                "docs/data.md shows"
            )
        return (
            f"set data.text_key to one of {', '.join(keys)}"
            if keys
            else ("no other column holds text, either")
        )


def _inside(row: object, key: str) -> object:
    """What stands under a key, which may have dots of its own."""
    if isinstance(row, dict) and key in row:
        return row[key]
    first, _, rest = key.partition(".")
    return _inside(row[first], rest) if rest and isinstance(row, dict) and first in row else ABSENT


def _texts(row: object, prefix: str = "") -> Iterator[str]:
    """The keys under which a row has text."""
    for key, value in row.items() if isinstance(row, dict) else ():
        yield from [prefix + key] if isinstance(value, str) else _texts(value, f"{prefix}{key}.")
