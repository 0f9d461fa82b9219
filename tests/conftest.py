"""What all tests share: a quiet machine, real text, configs as a user composes them,
and the real `train.py`.
"""

import os

# before torch: two threads on busy cores wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import runpy
import socket
import sys
import sysconfig
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import app.config.environment  # noqa: F401
from app.config.compose import as_dict

ROOT = Path(__file__).parent.parent
NANO = (
    "model=nano",
    "tokenizer=bytes",
    "data.seq_len=32",
    "data.batch_size=4",
    "data.micro_batch_size=2",
    "data.val_rows=2",
    "trainer.max_steps=2",
    "trainer.val_every=100",
    "trainer.precision=32-true",
    "callbacks=off",
)


def on_cpu(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides, on the CPU unless they choose a device:
    `trainer=auto` would train on a GPU where there is one.
    """
    chosen = any(
        override.startswith(("trainer=", "trainer.accelerator=")) for override in overrides
    )
    return overrides if chosen else ("trainer=cpu", *overrides)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes what a test has said of files whose names are no UTF-8:
    a report goes to another process as UTF-8.
    """
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def become_rank(rank: int, ranks: int, port: int) -> None:
    """Makes this process one of several, as a launcher would."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


def events_of(run: Path) -> EventAccumulator:
    """What a run has written to TensorBoard."""
    events = EventAccumulator(str(run / "tb"))
    events.Reload()
    return events


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real text file of 200 KB: modules of the standard library, one after another."""
    folder = Path(sysconfig.get_path("stdlib"))
    path = tmp_path_factory.mktemp("text") / "modules.txt"
    path.write_text(
        "\n".join((folder / name).read_text() for name in ("argparse.py", "inspect.py", "ast.py"))
    )
    return path


@pytest.fixture
def compose(text: Path) -> Callable[..., dict[str, Any]]:
    """The resolved nano config with overrides, as `train.py` gets it."""
    from hydra import compose, initialize_config_dir

    def composed(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return as_dict(
                compose("config", ["data=text", f"data.path={text}", *NANO, *on_cpu(overrides)])
            )

    return composed


@pytest.fixture
def train(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the real train.py in this process, in an empty folder, on the nano model;
    returns the folder of the run.
    """
    from hydra.core.global_hydra import GlobalHydra

    cache = text.parent / "cache"

    def run(
        *overrides: str,
        name: str = "run",
        source: tuple[str, ...] = ("data=text", f"data.path={text}"),
    ) -> Path:
        GlobalHydra.instance().clear()
        monkeypatch.chdir(tmp_path)
        base = (*source, f"data.cache_dir={cache}", *NANO, f"run={name}")
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *base, *on_cpu(overrides)])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        return tmp_path / "runs" / name

    return run
