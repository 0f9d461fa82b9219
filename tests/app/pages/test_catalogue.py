"""The table of all parts."""

import json

from app import zoo
from app.config.parts import KINDS
from app.pages import catalogue
from app.registry import names


def test_the_table_holds_every_registered_part_once():
    rows = [(e.kind, e.name) for e in catalogue.entries()]
    assert rows == [(kind, name) for kind in KINDS for name in names(kind)]
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
    assert all(name in printed for kind in KINDS for name in names(kind))
