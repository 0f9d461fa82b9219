"""Overrides out of a file of somebody else set values of our config groups, and do nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import race
from app.config.compose import composed
from app.config.own_overrides import require_own_overrides
from app.config.saved import read_config, read_list
from app.registry import UserError
from tests.support.mistakes import mistake

Train = Callable[..., Path]
COPY = "{_target_: shutil.copy, src: t.txt, dst: proof}"
REFUSED = {
    "-m": "is a flag",
    "--multirun": "is a flag",
    "--config-dir=/tmp": "is a flag",
    "hydra.run.dir=proof": "sets hydra.run.dir",
    "+hydra.callbacks.x=" + COPY: "sets hydra.callbacks.x",
    "++hydra.callbacks.x=" + COPY: "sets hydra.callbacks.x",
    "hydra/launcher=joblib": "sets hydra/launcher",
    "+hydra/callbacks@hydra.callbacks.y=x": "sets hydra/callbacks",
    "~hydra.callbacks": "sets hydra.callbacks",
    "hydra.searchpath=[file:///tmp]": "sets hydra.searchpath",
    "+balance@hydra.callbacks=aux": "sets hydra.callbacks",
    "+balance@_global_=aux": "sets _global_",
    "optimizer._target_=torch.load": "is no Optimizer of torch",
    "+callbacks.x._target_=os.system": "must lie in",
    "+callbacks.x={_target_: lightning.pytorch.callbacks.Timer, duration: {_target_: "
    "os.mkdir}}": "must lie in",
    "+callbacks.x=[{_target_: os.mkdir}]": "must lie in",
    "+model._target_=torch.nn.Linear": "only optimizer and callbacks",
    "+data.sources.x={_target_: os.mkdir}": "only optimizer and callbacks",
    "experiment=../../runs/run/evil": "is no option of a group",
    "experiment=/tmp/evil": "is no option of a group",
    "balance=[aux,../evil]": "is no option of a group",
    "experts/activation='../../evil'": "is no option of a group",
    "experiment=${oc.env:HOME}": "calls a resolver",
    "data.path=${oc.env:HOME}": "calls a resolver",
    r"data.path='\\${oc.env:HOME}'": "calls a resolver",
    "seed=1,2": "is a sweep",
    "seed=range(3)": "is a sweep",
    "seed": "cannot be read",
    "data.path=" + "[" * 3000: "cannot be read",
}
ACCEPTED = [
    "optimizer=adamw",
    "optimizer._target_=torch.optim.SGD",
    "~optimizer.betas",
    "balance=[aux,z_loss]",
    "balance={}",
    "+callbacks.x={_target_: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: "
    "step}",
    "seed=3",
    "+router/score@router.layers.top.score=mlp",
    "experiment=paper/rmoe",
    "experts/activation=relu2",
    "data.seq_len=32",
    "data.path='it is here'",
    r"data.path='\${x:y}'",
    "match.reference='experts=coarse'",
    "compile=false",
]


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_not_a_value_of_ours_is_refused_by_the_name_of_the_file(
    override: str, tmp_path: Path
) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text(yaml.safe_dump([override]))
    with pytest.raises(UserError) as refusal:
        read_list(path)
    assert str(refusal.value).startswith(f"{path}: ") and REFUSED[override] in str(refusal.value)


def test_what_a_run_saves_is_accepted() -> None:
    require_own_overrides("overrides.yaml", ACCEPTED)


@pytest.mark.parametrize(
    "override", ["+hydra.callbacks.x=" + COPY, "--multirun", "optimizer._target_=torch.load"]
)
def test_a_run_folder_of_somebody_else_runs_nothing(
    train: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str
) -> None:
    path = train() / "overrides.yaml"
    (tmp_path / "t.txt").write_text("text")
    path.write_text(yaml.safe_dump([*yaml.safe_load(path.read_text()), override]))
    assert "runs/run/overrides.yaml: " in mistake(
        train, capsys, "resume=true", "trainer.max_steps=3"
    )
    assert not (tmp_path / "proof").exists()


def test_a_value_of_the_environment_is_used_but_not_saved_as_a_reference(
    train: Train, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXT_OF_THE_RUN", str(text))
    folder = train(source=("data=text", "data.path=${oc.env:TEXT_OF_THE_RUN}"))
    assert not any("TEXT_OF_THE_RUN" in word for word in read_list(folder / "overrides.yaml"))
    monkeypatch.delenv("TEXT_OF_THE_RUN")
    train("resume=true", "trainer.max_steps=3", source=())
    assert (folder / "checkpoints/step_3.ckpt").exists()
    assert read_config(folder / "config.yaml")["data"]["path"] == str(text)


@pytest.mark.parametrize(
    "option", ["../../evil", "/tmp/evil", "text hydra.searchpath=[/tmp]", "${oc.env:HOME}"]
)
def test_a_source_names_an_option_of_the_group_data(option: str) -> None:
    config = composed(["data=mix", "tokenizer=bytes"])
    from app.config.compose import with_whole_sources

    with pytest.raises(UserError, match="must be the name of an option"):
        with_whole_sources(config["data"] | {"sources": {"x": {"data": option, "path": "t"}}})


STUDY = {
    "claim": "?",
    "baseline": "a",
    "common": [],
    "contestants": {"a": [], "b": ["router=gru"]},
    "sizes": ["xs"],
    "seeds": [1, 2],
    "noise_seeds": [],
    "tuning_seed": 0,
    "lr": [0.1, 0.2, 0.3],
    "lengths": [],
    "unmatched": [],
    "match": "active_flops",
    "measure": "bpb",
    "margin": 0.01,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"common": ["+hydra.callbacks.x=" + COPY]}, "race.common: .* sets hydra.callbacks.x"),
        ({"contestants": {"a": [], "b": ["--multirun"]}}, "race.contestants.b: .* is a flag"),
        ({"before": {"c": ["experiment=../../x"]}}, "race.before.c: .* is no option"),
        ({"sizes": ["../../evil"]}, r"race.sizes=\['../../evil'\]: must be names"),
    ],
)
def test_a_study_of_somebody_else_sets_values_of_ours_only(
    change: dict[str, Any], said: str
) -> None:
    from app.races.race import read_race

    read_race(STUDY)
    with pytest.raises(UserError, match=said):
        read_race(STUDY | change)


@pytest.mark.parametrize(
    "setting",
    [
        {"hydra": {"callbacks": {"x": {"_target_": "shutil.copy"}}}},
        {"hydra": {"job": {"env_set": {"PYTHONPATH": "evil"}}}},
        {"hydra": {"sweep": {"dir": "/elsewhere"}}},
    ],
)
def test_the_file_of_a_study_cannot_set_what_hydra_runs(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from app.config import compose as module

    conf = shutil.copytree(module.CONF, tmp_path / "conf")
    (conf / "race/evil.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump({"race": STUDY} | setting)
    )
    monkeypatch.setattr(module, "CONF", conf)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"race=evil: its file sets hydra\."):
        race.main(["race=evil"])
