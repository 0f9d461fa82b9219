"""A study says what is wrong with its records and its options in one line, and starts nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.races.records import read_lines, read_record, read_seconds
from app.races.run import run as run_study
from app.races.schema import require_comparable
from app.races.tables import markdown
from app.registry import UserError
from app.training.markdown import escaped
from tests.support.studies import WHOLE

LINE: dict[str, Any] = WHOLE | {
    "contestant": "a",
    "size": "xs",
    "lr": 0.1,
    "seed": 1,
    "share": 1.0,
    "key": "m1",
    "bpb": 2.0,
    "routing": {"dead": 0},
}
ODD: list[Any] = [
    None,
    "x",
    -1,
    0,
    float("nan"),
    float("inf"),
    [],
    {},
    True,
    [1],
    {"a": None},
    {"a": "x"},
    {"a": -1},
]
FITTING = {
    "routing": [None, {}, {"a": -1}],
    "lr": [0],
    "seed": [0, -1],
    "contestant": ["x"],
    "size": ["x"],
    "torch": ["x"],
    "key": ["x"],
}


@pytest.mark.parametrize("name", LINE)
def test_a_value_of_another_kind_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "members.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    assert read_lines(path) == [LINE]
    for value in ODD:
        path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | {name: value}) + "\n")
        if any(
            value == fitting and type(value) is type(fitting) for fitting in FITTING.get(name, [])
        ):
            read_lines(path)
            continue
        with pytest.raises(UserError) as refusal:
            read_lines(path)
        assert str(refusal.value).startswith(f"{path}:2: ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in LINE if name != "flops"])
def test_a_value_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "members.jsonl"
    path.write_text(json.dumps({key: value for key, value in LINE.items() if key != name}) + "\n")
    if name == "routing":  # of a dense model
        return
    with pytest.raises(UserError, match=name if name != "share" else "lr"):
        read_lines(path)


@pytest.mark.parametrize("text", ["{", "[]", "null", "", "[" * 50_000, '"x"'])
def test_a_line_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "members.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{text}\n{json.dumps(LINE)}\n")
    with pytest.raises(UserError, match=r"members.jsonl:2: is no JSON object"):
        read_lines(path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=r"members\.json: "):
        read_record(path.with_suffix(".json"))


@pytest.mark.parametrize(
    "value", [[], {"xs": 1}, {"xs": {"a": 0}}, {"xs": {"a": "x"}}, None, {"xs": {"a": None}}]
)
def test_seconds_of_another_kind_are_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text(json.dumps({"seconds_per_token": value}))
    with pytest.raises(UserError, match="seconds_per_token"):
        read_seconds(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"size": "m"},
        {"seed": 2, "domains": {"b": 2.0}},
        {"contestant": "b", "domains": {"b": 2.0}},
        {"seed": 2, "curve": [[1, 2.0], [2, 2.0]]},
        {"seed": 2, "routing": {"alive": 0}},
        {"seed": 2, "routing": None},
    ],
)
def test_trials_that_cannot_be_in_one_table_are_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "members.jsonl"
    require_comparable(
        path,
        ["xs"],
        9,
        [LINE, LINE | {"seed": 2}, {"size": "xs", "contestant": "c", "failed": "x"}],
    )
    require_comparable(path, ["xs", "m"], 9, [LINE, LINE | {"size": "m", "domains": {"b": 1.0}}])
    with pytest.raises(UserError, match=str(path)):
        require_comparable(path, ["xs"], 9, [LINE, LINE | change])


@pytest.mark.parametrize(
    "word",
    ["retry=x", "keep=x", "report=5", "report=null", "sizes=xs", "race.contestants.gru=null"],
)
def test_an_option_of_a_study_of_another_kind_is_refused(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra import compose, initialize_config_dir

    from app.config.compose import CONF

    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="race"):
        config = compose("race", ["race=zoo", word], return_hydra_config=True)
        with pytest.raises(UserError, match=word.partition("=")[0]):
            run_study(config, [])
    assert not list(tmp_path.iterdir())


def test_text_of_others_is_no_markup_in_a_page() -> None:
    from app.races.race import Race
    from app.races.result import Row, SizeResult

    name = "a|b <script> [x](http://y) `c` _d_ e_f *g*"
    shown = escaped(name)
    assert shown == r"a\|b \<script\> \[x\](http://y) \`c\` \_d\_ e_f \*g\*"
    assert escaped("two\nlines") == "two lines"
    race = Race(
        claim="is <b> better?",
        before={},
        common=[],
        contestants={name: []},
        baseline=name,
        match="active_flops",
        unmatched=[],
        sizes=["xs"],
        seeds=[1],
        noise_seeds=[],
        tuning_seed=0,
        lr=[1, 2, 3],
        lengths=[],
        measure="bpb",
        margin=0.1,
    )
    row = Row(name, seeds=[], failed=["a <img> |"])
    size = SizeResult(noise=None, missing=0, torch=[], optimizers=[], rows=[row])
    page = markdown(race, "x", {"xs": size})
    assert (
        shown in page
        and "<script>" not in page.replace(r"\<script\>", "")
        and "<b>" not in page.replace(r"\<b\>", "")
    )
    assert r"a \<img\> \|" in page
