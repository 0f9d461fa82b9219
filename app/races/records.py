"""The records of members that have ended: on this machine's desk, and in the results of all races, by their key."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.races.plan import Member, Record
from app.races.work import DESK
from app.registry import UserError
from app.training.files import read_whole, write_whole

RESULTS = Path("results")
DEFINITION, MEMBERS = "race.json", "members.jsonl"


def read_records(retry: bool = False) -> dict[str, Record]:
    """By key; with `retry` without those that have failed."""
    lines = [line for path in sorted(RESULTS.glob(f"*/{MEMBERS}")) for line in path.read_text().splitlines()]
    found = {record.pop("key"): record for record in map(json.loads, lines)}
    found |= {path.stem: json.loads(path.read_text()) for path in sorted(DESK.glob("*.json"))}
    return {key: record for key, record in found.items() if not (retry and "failed" in record)}


def write_records(name: str, members: Iterable[Member], records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Writes the records of a race's members that have ended, in the order of the race, a line each."""
    ended = [member for member in members if member.key in records]
    lines = [member.about | {"key": member.key} | dict(records[member.key]) for member in ended]
    write_whole(RESULTS / name / MEMBERS, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def begin(name: str, values: Mapping[str, Any], fingerprint: str) -> None:
    """Writes down what a race is before it runs.

    Raises:
        UserError: it was another one when it began.
    """
    path = RESULTS / name / DEFINITION
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(read_whole(path))["fingerprint"] if path.exists() else fingerprint
    if before != fingerprint:
        raise UserError(
            f"race={name}: conf/race/{name}.yaml has changed since {path.parent} was begun ({before}, now "
            f"{fingerprint}); a changed race is another one: copy it to another name, or delete that folder"
        )
    write_whole(path, json.dumps({"fingerprint": fingerprint, "race": values}, indent=1) + "\n")
