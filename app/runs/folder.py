"""The folder of a run, runs/NAME: config.yaml, overrides.yaml, tokenizer.json, text.json,
held_out.npz, checkpoints/, tb/, summary.json. It appears complete under its name, and belongs to
one start at a time.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from torch import Tensor

from app.config.overrides import last
from app.config.saved import RUNS
from app.fault_points import fault_point
from app.registry import UserError
from app.training.checkpoints import write_atomically
from app.training.files import remove, write_whole

SUMMARY = "summary.json"
NAME = r"[\w=,+@%][\w=,.+@%-]{0,199}"
# held while a process trains the run
LOCK = ".lock"


def run_name(config: Mapping[str, object], overrides: list[str]) -> str:
    """Return the name of a run: `run=NAME`, or date and time (and the number of the job, in a
    sweep).

    Two runs that start in the same second get different names; `opened` tells if one was taken
    meanwhile.

    Raises:
        UserError: it is no plain name.
    """
    if config["run"] is None:
        sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + (
            f"_{HydraConfig.get().job.num}" if sweep else ""
        )
        names = chain([stamp], (f"{stamp}_{number}" for number in count(2)))
        return next(free for free in names if not (RUNS / free).exists())
    # 1e3 as it was typed
    name = config["run"] if isinstance(config["run"], str) else last(overrides, "run")
    require_name(name or "")
    return str(name)


@contextmanager
def opened(folder: Path, files: Mapping[str, str | bytes], new: bool) -> Iterator[None]:
    """A new folder with these files, or an old one with these brought up to date, for this process
    alone.

    A start that fails before it trains leaves the name of a new run free.

    Raises:
        UserError: the name was taken meanwhile, or another process trains the run.
    """
    if new:
        _make(folder, files)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"run={folder.name}: another process is training {folder}; wait for it, or end it"
        ) from None
    try:
        # of a process that was killed
        for unfinished in (*folder.glob("*.part"), *folder.glob("checkpoints/*.part")):
            remove(unfinished)
        for name, data in files.items():
            write_whole(folder / name, data)
        yield
    except BaseException:
        if new and not (folder / "checkpoints").exists() and not (folder / "tb").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.release()


def new_run(folder: Path, files: Mapping[str, str | bytes], weights: Mapping[str, Tensor]) -> None:
    """Make the folder of a run that begins with these weights: a checkpoint of step 0, and nothing
    about others.

    Args:
        folder: The folder; there is none of this name yet.
        files: The files of the run by name.
        weights: By the names of a checkpoint, which begin with `model.`.

    Raises:
        UserError: The name is taken, or the folder cannot be written; nothing is left of it then.
    """
    checkpoint = {"state_dict": dict(weights), "global_step": 0}
    try:
        with opened(folder, files, new=True):
            write_atomically(checkpoint, folder / "checkpoints" / "step_0.ckpt")
    except OSError as error:
        reason = " ".join(str(error).split())
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{folder}: cannot be written ({reason}); nothing is left of it") from error


def require_name(name: str) -> None:
    """Check the name of a new run.

    Raises:
        UserError: It is no plain name.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"run={name}: must be a plain name of letters, digits and _=,.+@%-, not a path; "
            "run=NAME"
        )


def _make(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Fills a folder of another name and gives it its own, which only one process can do."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        for name, data in files.items():
            write_whole(unfinished / name, data)
        fault_point("rename run folder")
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise taken(folder) from error
        raise


class NameTakenError(UserError):
    """Another run has the name."""


def taken(folder: Path) -> NameTakenError:
    """What is said of a name that a run already has."""
    return NameTakenError(
        f"run={folder.name}: {folder} exists; go on with resume=true, or choose another name"
    )
