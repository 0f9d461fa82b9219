"""Runs beside each other: every member of a sweep is a run of its own,
and a name belongs to one run.
"""

import json
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from app.training.module import LanguageModel
from tests.support.mistakes import Train
from tests.support.mistakes import mistake as told
from tests.support.shell import Shell, command, environment, mistake

pytestmark = pytest.mark.nightly


def test_a_sweep_with_a_failing_member_runs_the_others_each_in_its_own_folder(
    shell: Shell, folder: Path
) -> None:
    done = shell("train --multirun SMALL seed=3,4 router=topk,expert_choice")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "rror" in line]
    assert [line.partition(": router")[0] for line in lines] == [
        "error: job 1 (seed=3 router=expert_choice)",
        "error: job 3 (seed=4 router=expert_choice)",
    ]
    runs = sorted((folder / "runs").iterdir())
    assert [run.name[-2:] for run in runs] == ["_0", "_2"]
    seeds = [json.loads((run / "summary.json").read_text())["seed"] for run in runs]
    assert seeds == [OmegaConf.load(run / "config.yaml").seed for run in runs] == [3, 4]
    losses = [json.loads((run / "summary.json").read_text())["val_nats"] for run in runs]
    assert losses[0] != losses[1]


LAUNCHERS = {
    "joblib": "hydra/launcher=joblib hydra.launcher.n_jobs=2",
    "submitit": "hydra/launcher=submitit_local hydra.launcher.timeout_min=5",
}


@pytest.mark.parametrize("package", ["joblib", pytest.param("submitit", marks=pytest.mark.nightly)])
def test_a_failure_in_a_process_of_a_launcher_ends_the_sweep_with_2(
    package: str, shell: Shell, folder: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")
    line = f"train --multirun SMALL router=topk,expert_choice {LAUNCHERS[package]}"
    done = shell(line, timeout=250)
    assert done.returncode == 2
    assert "error: a job of the sweep has failed" in done.stderr.splitlines()[-1]
    assert [run.name[-2:] for run in (folder / "runs").iterdir()] == ["_0"], "the others have run"
    well = shell(line.replace(",expert_choice", ",gru"), timeout=250)
    assert well.returncode == 0, well.stderr


def test_a_member_that_fails_while_it_trains_keeps_its_folder_and_the_others_end(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = LanguageModel.training_step
    calls = count(1)

    # of four members with two steps each, the third in its second
    def ill(*args: Any) -> Any:
        if next(calls) == 6:
            raise RuntimeError("out of memory")
        return step(*args)

    monkeypatch.setattr(LanguageModel, "training_step", ill)
    with pytest.raises(SystemExit) as end:
        train("run=null", "seed=3,4", "router=topk,gru", "--multirun")
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == ["error: job 2 (seed=4 router=topk): out of memory"]
    runs = sorted((tmp_path / "runs").iterdir())
    assert [OmegaConf.load(run / "config.yaml").seed for run in runs] == [3, 3, 4, 4]
    assert [(run / "summary.json").exists() for run in runs] == [True, True, False, True]


def test_a_member_never_goes_on_with_another(shell: Shell, folder: Path) -> None:
    assert (
        shell(
            "train --multirun SMALL trainer.max_steps=2,4 run='len_${trainer.max_steps}'".replace(
                "'", ""
            )
        ).returncode
        == 0
    )
    assert [
        json.loads((folder / f"runs/len_{n}/summary.json").read_text())["tokens_seen"]
        for n in (2, 4)
    ] == [
        256,
        512,
    ]


def test_one_name_for_a_whole_sweep_is_refused_before_anything_is_written(
    shell: Shell, folder: Path
) -> None:
    assert "run='same_${seed}'" in mistake(shell("train --multirun SMALL seed=0,1 run=same"))
    assert not (folder / "runs").exists()


def test_of_two_runs_with_one_name_at_once_the_second_ends_in_one_line(
    folder: Path, shell: Shell
) -> None:
    both = [
        subprocess.Popen(
            command("train SMALL run=one trainer.max_steps=40"),
            cwd=folder,
            env=environment(),
            stderr=-1,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    loser = said[[process.returncode for process in both].index(2)]
    assert [line for line in loser.splitlines() if "error" in line] == [
        "error: run=one: runs/one exists; go on with resume=true, or choose another name"
    ]
    assert json.loads((folder / "runs/one/summary.json").read_text())["tokens_seen"] == 40 * 128


@pytest.mark.parametrize("name", ["../up", "..", "", "/tmp/up", "-x", "a b"])
def test_a_name_that_is_no_plain_name_is_refused(
    train: Train, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "plain name" in told(train, capsys, f"run={name}")


def test_an_odd_name_is_kept_as_it_was_typed(train: Train) -> None:
    train("trainer.max_steps=1", name="1e3")
    train("trainer.max_steps=2", "resume=true", name="1e3")
    assert [path.name for path in Path("runs").iterdir()] == ["1e3"]


FAILED = (
    "init=upcycle init.checkpoint=none.ckpt",
    "trainer=ddp data.batch_size=5",
    "logger=wandb",
    "experts.top_k=99",
)


@pytest.mark.parametrize("wrong", FAILED)
def test_a_start_that_failed_leaves_its_name_free(
    train: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: str
) -> None:
    told(train, capsys, *wrong.split())
    assert not list(tmp_path.glob("runs/*"))


def test_a_sweep_under_a_strategy_of_several_processes_takes_one_process_a_job(
    shell: Shell, folder: Path
) -> None:
    done = shell(
        "train --multirun SMALL trainer=ddp trainer.accelerator=cpu trainer.devices=1 seed=1,2"
    )
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "runs").glob("*/summary.json"))) == 2
