"""Runs with equal folder names get different ids at a tracking server."""

from pathlib import Path
from typing import Any

import pytest

from app.config.compose import composed
from app.registry import make
from app.training.loggers import mlflow, wandb


class Recorder:
    """In the place of a logger of Lightning: keeps what it was made with."""

    def __init__(self, *names: Any, **options: Any) -> None:
        self.options = options
        self.run_id = options.get("run_id") or f"id{id(self)}"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (wandb, mlflow):
        monkeypatch.setattr(module, "find_spec", lambda name: True)
    monkeypatch.setattr(wandb, "WandbLogger", Recorder)
    monkeypatch.setattr(mlflow, "MLFlowLogger", Recorder)


def opened(name: str, folder: Path, *overrides: str) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    entry = composed([f"logger={name}", *overrides])["logger"][name]
    return make("logger", entry, key=f"logger.{name}").open(folder, 0)


def test_each_run_has_an_id_of_its_own_at_wandb_and_keeps_it(tmp_path: Path) -> None:
    first, again, other = (
        opened("wandb", tmp_path / place / "run").options["id"] for place in ("a", "a", "b")
    )
    assert first == again != other


def test_entity_group_and_tags_are_handed_on(tmp_path: Path) -> None:
    chosen = (
        "logger.wandb.entity=team",
        "logger.wandb.group=study",
        "logger.wandb.tags=[moe,baseline]",
    )
    options = opened("wandb", tmp_path, *chosen).options
    assert (options["entity"], options["group"], options["tags"]) == (
        "team",
        "study",
        ["moe", "baseline"],
    )
    assert options["name"] == tmp_path.name
    options = opened("wandb", tmp_path).options
    assert (options["entity"], options["group"], options["tags"]) == (None, None, [])


def test_a_run_that_goes_on_is_the_same_run_at_mlflow_and_another_of_its_name_is_not(
    tmp_path: Path,
) -> None:
    first, again, other = (opened("mlflow", tmp_path / place / "run") for place in ("a", "a", "b"))
    assert first.options["run_id"] is None
    assert again.options["run_id"] == first.run_id
    assert other.options["run_id"] is None
