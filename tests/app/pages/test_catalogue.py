"""The table of all parts."""

import json

import pytest

from app import zoo
from app.config.compose import CONF
from app.config.parts import KINDS
from app.pages import catalogue
from app.registry import UserError, names


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


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_list_names_every_part_and_preset_and_keeps_to_the_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    zoo.main([])
    lines = capsys.readouterr().out.splitlines()
    first_words = [
        line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("   ")
    ]
    presets = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))
    assert first_words == [*presets, *(name for kind in KINDS for name in names(kind))]
    assert all(len(line) <= max(columns, 80) for line in lines), "a heading may be longer than 60"


def test_groups_choose_what_is_listed(capsys):
    zoo.main(["score", "drop"])
    printed = capsys.readouterr().out
    assert "SCORE: how well an expert fits a token   router/score=NAME" in printed
    assert all(name in printed for name in (*names("score"), *names("drop")))
    assert "loss_free" not in printed
    zoo.main(["--json", "drop"])
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == names("drop")


def test_an_unknown_group_is_one_line():
    with pytest.raises(
        UserError,
        match=r"^scor: unknown; did you mean 'score'\? .one of: "
        r"activation, balance",
    ):
        zoo.main(["scor"])
