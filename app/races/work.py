"""One member of a race, in whatever process a launcher has made: `train.py`, and then what is asked
of its run.

The member lies in the folder DESK: what it is told (KEY.yaml), what it says (KEY.log), and at the
end its record (KEY.json), which is whole or absent.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from filelock import FileLock
from omegaconf import DictConfig

from app.config.environment import PARENT
from app.config.saved import listed, read_list
from app.races.plan import Member, folder_of
from app.races.record import record_of
from app.runs.folder import LOCK, SUMMARY
from app.training.files import write_whole

DESK = Path(".cache/race")
TRAIN = Path(__file__).parents[2] / "train.py"
# environment variable of the workers: process id of the study
STUDY = "ROUTER_ZOO_STUDY"
LOOK_EVERY = 1.0  # seconds
# whether this process is a worker of the study's process pool
OF_POOL = os.environ.get(STUDY) == str(os.getppid())
# somebody ended it: it goes on next time
STOPPED = (130, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)


def hand_out(member: Member) -> None:
    """Puts on the desk what a member is told; a record of an earlier failure goes."""
    DESK.mkdir(parents=True, exist_ok=True)
    (DESK / f"{member.key}.json").unlink(missing_ok=True)
    write_whole(DESK / f"{member.key}.yaml", listed(member.overrides))


def work(config: DictConfig) -> None:
    """Trains the member `config.member` to its end and writes its record,
    unless another worker has.
    """
    path = DESK / f"{config.member}.json"
    with FileLock(DESK / f"{config.member}.lock"):
        record = (
            None
            if path.exists()
            else trained(config.member, read_list(DESK / f"{config.member}.yaml"))
        )
        if record is not None:
            write_whole(path, json.dumps(record) + "\n")
            if "failed" not in record and not config.keep:
                shutil.rmtree(folder_of(config.member))


def trained(key: str, overrides: list[str]) -> dict[str, object] | None:
    """The record of a member; None if somebody has stopped it.

    It goes on with what an earlier start has left; a run that a killed worker has left going is
    waited for.
    """
    # a pool still hands out queued trials
    if _study_is_gone():
        return None
    folder = folder_of(key)
    log = DESK / f"{key}.log"
    if folder.exists():
        with FileLock(folder / LOCK):
            pass
    own = [f"run={folder.name}", "resume=true", "callbacks=race", "logger=csv"]
    with log.open("wb") as out:
        command = [sys.executable, str(TRAIN), *overrides, *own]
        environment = os.environ | {PARENT: str(os.getpid())}
        code = _waited_for(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
    if code in STOPPED:
        return None
    if code or not (folder / SUMMARY).exists():
        return {"failed": reason(code, log.read_text(errors="replace"))}
    return record_of(folder)


def _waited_for(run: "subprocess.Popen[bytes]") -> int:
    """Wait for a run and return its exit status; terminate it as soon as the study of this worker
    is gone.

    A run ends with its parent process (`app.config.environment`), but a pool worker survives a
    killed study.
    """
    while True:
        try:
            return run.wait(LOOK_EVERY)
        except subprocess.TimeoutExpired:
            if _study_is_gone():
                run.terminate()
        # this worker is interrupted, too
        except BaseException:
            run.terminate()
            raise


def _study_is_gone() -> bool:
    """Return whether this process is a pool worker whose study was killed."""
    return OF_POOL and os.environ[STUDY] != str(os.getppid())


def reason(code: int, said: str) -> str:
    """Why a run has failed, in a line."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (
            " (out of memory?)" if code == -signal.SIGKILL else ""
        )
    lines = [line for line in said.splitlines() if line.strip()]
    told = (
        [line for line in lines if line.startswith("error: ")] or lines or [f"exit status {code}"]
    )
    return told[-1].removeprefix("error: ")
