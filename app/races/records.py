"""The records of members that have ended: on this machine's desk, and in the results of all races, by their key."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.races.plan import Plan, Record
from app.races.work import DESK
from app.registry import UserError
from app.training.files import read_whole, write_whole

RESULTS = Path("results")
DEFINITION, MEMBERS, SECONDS = "race.json", "members.jsonl", "seconds.json"


def read_records(retry: bool = False) -> dict[str, Record]:
    """By key; with `retry` without those that have failed."""
    lines = [line for path in sorted(RESULTS.glob(f"*/{MEMBERS}")) for line in read_lines(path)]
    found = {record.pop("key"): record for record in lines if "key" in record}
    found |= {path.stem: json.loads(path.read_text()) for path in sorted(DESK.glob("*.json"))}
    return {key: record for key, record in found.items() if not (retry and "failed" in record)}


def write_records(name: str, plan: Plan, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Writes the records of a race's members that have ended, a line each, size by size; other sizes keep theirs."""
    refused = [entry for entry in plan.entries if entry.refused]
    ended = [member for member in plan.known(records) if member.key in records]
    lines: list[dict[str, Any]] = [{"contestant": e.contestant, "size": e.size, "failed": e.refused} for e in refused]
    lines += [{**member.about, "key": member.key, **records[member.key], **member.about} for member in ended]
    lines += [line for line in read_lines(RESULTS / name / MEMBERS) if line["size"] not in plan.sizes]
    lines.sort(key=lambda line: plan.race.sizes.index(line["size"]))
    write_whole(RESULTS / name / MEMBERS, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Of the records of a race; none if it has none yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_seconds(folder: Path) -> dict[str, dict[str, float]]:
    """Of a training token, by size and contestant; empty if the race in this folder was not timed yet."""
    path = folder / SECONDS
    return json.loads(path.read_text())["seconds_per_token"] if path.exists() else {}


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
