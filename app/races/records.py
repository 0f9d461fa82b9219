"""The records of members that have ended:
on this machine's desk, and in the results of all races, by their key.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.races.plan import Plan, Record
from app.races.schema import is_positive, problem_of, problem_of_place, require_comparable
from app.races.work import DESK
from app.registry import UserError
from app.training.files import lines_of, read_json, write_whole

RESULTS = Path("results")
DEFINITION = "race.json"
MEMBERS = "members.jsonl"
SECONDS = "seconds.json"


def read_records(retry: bool = False) -> dict[str, Record]:
    """By key; with `retry` without those that have failed."""
    lines = [line for path in sorted(RESULTS.glob(f"*/{MEMBERS}")) for line in read_lines(path)]
    found = {record.pop("key"): record for record in lines if "key" in record}
    found |= {path.stem: read_record(path) for path in sorted(DESK.glob("*.json"))}
    return {key: record for key, record in found.items() if not (retry and "failed" in record)}


def write_records(name: str, plan: Plan, records: Mapping[str, Record]) -> list[dict[str, object]]:
    """Writes the records of a race's members that have ended, a line each, size by size;
    other sizes keep theirs.
    """
    refused = [entry for entry in plan.entries if entry.refused]
    ended = [member for member in plan.known(records) if member.key in records]
    lines: list[dict[str, Any]] = [
        {"contestant": e.contestant, "size": e.size, "failed": e.refused} for e in refused
    ]
    lines += [
        {**member.about, "key": member.key, **records[member.key], **member.about}
        for member in ended
    ]
    path = RESULTS / name / MEMBERS
    lines += [line for line in read_lines(path) if line["size"] not in plan.sizes]
    require_comparable(path, plan.race.sizes, plan.race.tuning_seed, lines)
    lines.sort(key=lambda line: plan.race.sizes.index(line["size"]))
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a study; none if it has none yet.

    Raises:
        UserError: One is damaged.
    """
    lines = []
    for number, text in enumerate(lines_of(path) if path.exists() else (), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        problem = (
            "is no JSON object"
            if not isinstance(line, dict)
            else problem_of_place(line) or problem_of(line)
        )
        if problem is not None:
            raise UserError(
                f"{path}:{number}: {problem}; restore the file, or delete this line to run it again"
            )
        lines.append(line)
    return lines


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a trial that has ended.

    Raises:
        UserError: It is damaged.
    """
    record = read_json(path, dict)
    problem = problem_of(record)
    if problem is not None:
        raise UserError(f"{path}: {problem}; delete it to run the trial again")
    return record


def read_seconds(folder: Path) -> dict[str, dict[str, float]]:
    """Of a training token, by size and contestant;
    empty if the race in this folder was not timed yet.
    """
    path = folder / SECONDS
    if not path.exists():
        return {}
    times = read_json(path, dict).get("seconds_per_token")
    sizes = list(times.values()) if isinstance(times, dict) else [None]
    if not all(isinstance(each, dict) and all(map(is_positive, each.values())) for each in sizes):
        raise UserError(
            f"{path}: seconds_per_token must hold numbers above 0 by size and contestant; restore "
            "it"
        )
    return dict(times or {})


def begin(name: str, values: Mapping[str, Any], fingerprint: str) -> None:
    """Writes down what a race is before it runs.

    Raises:
        UserError: it was another one when it began.
    """
    path = RESULTS / name / DEFINITION
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_json(path, dict).get("fingerprint") if path.exists() else fingerprint
    if before != fingerprint:
        raise UserError(
            f"race={name}: conf/race/{name}.yaml has changed since {path.parent} was begun "
            f"({before}, now {fingerprint}); a changed race is another one: copy it to another "
            "name, or delete that folder"
        )
    write_whole(path, json.dumps({"fingerprint": fingerprint, "race": values}, indent=1) + "\n")
