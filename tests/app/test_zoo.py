"""The table of parts, and the documents that are written from it."""

import json
from pathlib import Path

import pytest

from app import zoo
from app.registry import names

ROOT = Path(zoo.__file__).parents[1]


def between(path: Path, marker: str) -> str:
    return path.read_text().split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->")[0].strip()


def test_the_table_holds_every_registered_part_once():
    rows = [(e.kind, e.name) for e in zoo.entries()]
    assert rows == [(kind, name) for kind in zoo.KINDS for name in names(kind)]
    assert len(set(rows)) == len(rows)


def test_json_says_what_the_classes_say(capsys):
    zoo.main(["--json"])
    rows = {(row["kind"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    top_k = rows["select", "top_k"]
    assert (top_k["paper"], top_k["k"], top_k["scope"]) == ("1701.06538", "fixed", "token")
    assert top_k["causal_training"] and top_k["causal_evaluation"]
    assert rows["select", "top_p"]["k"] == "varying"
    assert rows["balance", "aux"]["scope"] == "micro | sequence | global"
    assert not rows["select", "expert_choice"]["causal_evaluation"]


def test_the_printed_table_names_every_part(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    zoo.main([])
    printed = capsys.readouterr().out
    assert all(name in printed for kind in zoo.KINDS for name in names(kind))


def test_the_table_in_the_readme_is_that_of_the_registry():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    assert between(readme, "zoo") == zoo.markdown().strip(), "python -m app.zoo --markdown prints the new table"


def test_the_refused_pairs_in_the_docs_are_those_that_the_code_refuses():
    written = between(ROOT / "docs/refused.md", "refused")
    assert written == zoo.markdown_refused().strip(), "python -m app.zoo --refused prints the new table"
