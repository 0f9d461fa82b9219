"""Under torchrun: who starts the processes again when one is gone, with as many as there are,
and who ends them.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.config.saved import read_config
from app.training.checkpoints import read_checkpoint, steps
from tests.conftest import ROOT, free_port
from tests.support.interrupted import same
from tests.support.shell import SMALL, environment

pytestmark = pytest.mark.nightly

ILL = f"""
import os, runpy, signal, sys
sys.path.insert(0, "{ROOT}")
import app.config.environment
from app.training.module import LanguageModel

step = LanguageModel.training_step


def training_step(self, *args):
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if self.global_step == 3 and os.environ["RANK"] == "1" and first_attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)


LanguageModel.training_step = training_step
sys.argv[0] = "{ROOT}/train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WORDS = (
    f"{SMALL} data.micro_batch_size=2 trainer.accelerator=cpu trainer.devices=auto "
    "trainer.timeout_s=20 resume=true"
)
LONG = "trainer.max_steps=100000 trainer.checkpoint_every=5 trainer.val_every=100000"
Start = Callable[[str, str], "subprocess.Popen[str]"]


@pytest.fixture
def torchrun(folder: Path) -> Iterator[Start]:
    """Starts torchrun in the folder; whatever a test leaves of it is killed."""
    (folder / "ill.py").write_text(ILL)
    begun: list[subprocess.Popen[str]] = []

    def start(how: str, what: str) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "torch.distributed.run", *how.split(), *what.split()]
        said = (folder / f"said{len(begun)}").open("w")
        begun.append(
            subprocess.Popen(
                words, cwd=folder, env=environment(), stderr=said, stdout=said, text=True
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()


def wait_for(what: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


def workers(folder: Path) -> list[int]:
    """Processes that train in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            place = (path / "cwd").readlink()
        except OSError:
            continue
        if (
            place == folder
            and str(ROOT / "train.py").encode() in words
            and b"torch.distributed.run" not in words
        ):
            found.append(int(path.name))
    return found


def newest_step(run: Path) -> int:
    return max((step for step, _ in steps(run / "checkpoints")), default=0)


@pytest.mark.parametrize("trainer", ["fsdp trainer.checkpoint_format=async", "ddp"])
def test_torchrun_starts_a_killed_rank_again_and_the_run_ends_as_a_straight_one(
    torchrun: Start, folder: Path, trainer: str
) -> None:
    straight = torchrun(
        "--nproc-per-node=2", f"{ROOT}/train.py {WORDS} run=straight trainer={trainer}"
    )
    assert straight.wait(120) == 0, (folder / "said0").read_text()
    cut = torchrun(
        "--nproc-per-node=2 --max-restarts=1", f"ill.py {WORDS} run=cut trainer={trainer}"
    )
    assert cut.wait(120) == 0, (folder / "said1").read_text()
    assert "exitcode: -9" in (folder / "said1").read_text()
    one, two = (
        read_checkpoint(folder / f"runs/{name}/checkpoints/step_4.ckpt")
        for name in ("straight", "cut")
    )
    assert same(one["state_dict"], two["state_dict"])
    assert same(one["optimizer_states"], two["optimizer_states"])


def test_no_process_trains_on_when_torchrun_is_killed(torchrun: Start, folder: Path) -> None:
    agent = torchrun("--nproc-per-node=2", f"{ROOT}/train.py {WORDS} {LONG} run=long trainer=ddp")
    wait_for(lambda: newest_step(folder / "runs/long") >= 5)
    assert len(workers(folder)) == 2
    agent.send_signal(signal.SIGKILL)
    wait_for(lambda: not workers(folder), 30)
    assert "which is saved" in (folder / "said0").read_text()


def test_no_process_trains_on_when_the_first_one_is_killed(folder: Path) -> None:
    words = f"{ROOT}/train.py {WORDS} {LONG} run=long trainer=ddp trainer.devices=2".split()
    with (folder / "said").open("w") as said:
        first = subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment(), stderr=said, stdout=said
        )
    wait_for(lambda: newest_step(folder / "runs/long") >= 5)
    assert len(workers(folder)) == 2
    first.kill()
    first.wait()
    wait_for(lambda: not workers(folder), 30)


def test_a_run_on_two_nodes_goes_on_with_the_one_that_is_left(
    torchrun: Start, folder: Path
) -> None:
    address = f"--rdzv-backend=c10d --rdzv-endpoint=localhost:{free_port()}"
    how = f"--nnodes=1:2 --nproc-per-node=1 --max-restarts=2 {address} --rdzv-conf="
    # The first one holds the store of the rendezvous, which must outlive the second.
    conf = ("last_call_timeout=10,is_host=1", "last_call_timeout=10,is_host=0")
    what = f"{ROOT}/train.py {WORDS} {LONG} run=nodes trainer.num_nodes=auto trainer=fsdp"
    agents = [torchrun(how + one, what) for one in conf]
    run = folder / "runs/nodes"
    wait_for(lambda: newest_step(run) >= 5)
    assert read_config(run / "config.yaml")["trainer"]["num_nodes"] == 2
    # its process saves, and ends the other's
    agents[1].send_signal(signal.SIGKILL)
    wait_for(lambda: read_config(run / "config.yaml")["trainer"]["num_nodes"] == 1)
    known = newest_step(run)
    wait_for(lambda: newest_step(run) > known)
    agents[0].send_signal(signal.SIGTERM)
    agents[0].wait(60)
    wait_for(lambda: not workers(folder), 30)


def test_two_nodes_of_two_processes_train(torchrun: Start, folder: Path) -> None:
    address = f"--rdzv-backend=c10d --rdzv-endpoint=localhost:{free_port()}"
    what = (
        f"{ROOT}/train.py {WORDS} run=nodes data.micro_batch_size=1 trainer.num_nodes=2 trainer=ep "
        "trainer.ep_size=2"
    )
    agents = [torchrun(f"--nnodes=2 --nproc-per-node=2 {address}", what) for _ in range(2)]
    assert [agent.wait(200) for agent in agents] == [0, 0], (folder / "said0").read_text()
    assert newest_step(folder / "runs/nodes") == 4
