"""Two workers on one desk, as when a race is killed and started again
while workers of the first are still there.
"""

import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from app.races import work


def test_a_member_that_another_worker_trains_is_waited_for_and_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    go_on = threading.Event()
    trainings = list[str]()

    def trained(key: str, overrides: list[str]) -> dict[str, Any]:
        trainings.append(key)
        begun.set()
        assert go_on.wait(60)
        return {"failed": "no memory"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "trained", trained)
    work.DESK.mkdir(parents=True)
    (work.DESK / "m1.yaml").write_text("[]")
    config = OmegaConf.create({"member": "m1", "keep": False})
    workers = [threading.Thread(target=work.work, args=(config,)) for _ in range(2)]
    workers[0].start()
    assert begun.wait(60)
    workers[1].start()
    workers[1].join(0.5)
    assert workers[1].is_alive() and not (work.DESK / "m1.json").exists()
    go_on.set()
    for worker in workers:
        worker.join(60)
    assert trainings == ["m1"] and (work.DESK / "m1.json").exists()


class Endless:
    """A run that ends only when it is terminated."""

    def __init__(self) -> None:
        self.terminated = False

    def wait(self, seconds: float) -> int:
        if self.terminated:
            return -signal.SIGTERM
        raise subprocess.TimeoutExpired("train.py", seconds)

    def terminate(self) -> None:
        self.terminated = True


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a worker whose study was killed, so it has another parent now."""
    monkeypatch.setattr(work, "OF_POOL", True)
    monkeypatch.setenv(work.STUDY, "999999999")


def test_a_worker_whose_study_was_killed_ends_its_run(gone: None) -> None:
    run = Endless()
    assert work._waited_for(run) in work.STOPPED  # type: ignore[arg-type]
    assert run.terminated


def test_a_worker_whose_study_was_killed_begins_no_other_run(
    gone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert work.trained("m1", []) is None
    assert not list(tmp_path.rglob("*"))
