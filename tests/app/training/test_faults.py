"""What can go wrong while a run goes on: each ends in the right result or in one line, with earlier
work intact.

Runs are forked off this process and die of real signals, at places that are chosen exactly.
"""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.fault_points import install
from app.training.checkpoints import checksum, digest, newest, steps, write_atomically
from app.training.module import LanguageModel
from callbacks.warnings import Warnings
from tests.conftest import NANO, ROOT, become_rank, free_port
from tests.support.interrupted import LAST, assert_same_end, same
from tests.support.mistakes import mistake

Train = Callable[..., Path]
PARTS = (
    "router=noisy_topk",
    "balance=[aux,loss_free]",
    f"schedule.total_steps={LAST}",
    "schedule.warmup_steps=1",
    f"trainer.max_steps={LAST}",
    "trainer.checkpoint_every=2",
    "trainer.val_every=3",
)


def kill(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], Any], said: Path) -> int:
    """Starts `work` in a process of its own, what it says goes into a file; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 2)
            sys.stderr = file
            torch.set_num_threads(1)
            work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def ended(pid: int, seconds: float = 60) -> int:
    """Waits for a process; returns its exit status, or minus the signal that ended it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the process was still running after {seconds} s")


def die(train: Train, said: Path, place: Callable[[], None], *overrides: str) -> None:
    """A run that is killed at a place."""

    def work() -> None:
        place()
        train(*PARTS, *overrides, name="killed")

    assert ended(forked(work, said)) == -signal.SIGKILL


# --- killed


def killed_at(train: Train, tmp_path: Path, step: int, last: int) -> None:
    parts = (f"trainer.max_steps={last}", f"schedule.total_steps={last}")
    straight = tmp_path / "runs/straight"
    if not straight.exists():
        train(*PARTS, *parts, name="straight")
    where = random.Random(step).choice(["training step", "optimizer step"])
    die(train, tmp_path / "said", lambda: install(where, step + 1, kill), *parts)
    done = [number for number, _ in steps(tmp_path / "runs/killed/checkpoints")]
    assert max(done, default=0) >= step - 2, "at most the steps since the last checkpoint are lost"
    assert_same_end(straight, train(*PARTS, *parts, "resume=true", name="killed"), last)
    shutil.rmtree(tmp_path / "runs/killed")


def test_a_run_killed_at_random_steps_goes_on_bit_for_bit(train: Train, tmp_path: Path) -> None:
    for step in random.Random(0).sample(range(1, LAST), 3):
        killed_at(train, tmp_path, step, LAST)


@pytest.mark.nightly
def test_a_run_killed_at_any_of_twenty_steps_goes_on_bit_for_bit(
    train: Train, tmp_path: Path
) -> None:
    for step in range(1, 21):
        killed_at(train, tmp_path, step, 22)


TIMED = (
    "trainer.checkpoint_every=1000",
    "trainer.checkpoint_minutes=1e-6",
    "trainer.keep_checkpoints=9",
)


def test_a_run_saves_by_the_clock_too(train: Train, tmp_path: Path) -> None:
    folder = train(*PARTS, *TIMED)
    assert [step for step, _ in steps(folder / "checkpoints")] == [*range(1, LAST + 1)]


def test_two_processes_agree_on_when_the_clock_says_so(train: Train, tmp_path: Path) -> None:
    two = on_two(train, tmp_path, lambda: None, *TIMED)
    assert [ended(pid) for pid in two] == [0, 0]
    assert [step for step, _ in steps(tmp_path / "runs/two/checkpoints")] == [*range(1, LAST + 1)]


def test_sigterm_saves_after_the_step_and_ends_well(train: Train, tmp_path: Path) -> None:
    def work() -> None:
        install("training step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(*PARTS, "trainer.checkpoint_every=100", name="asked")

    assert ended(forked(work, tmp_path / "said")) == 128 + signal.SIGTERM
    assert [step for step, _ in steps(tmp_path / "runs/asked/checkpoints")] == [3]
    assert_same_end(train(*PARTS, name="straight"), train(*PARTS, "resume=true", name="asked"))


# --- several processes


def on_two(
    train: Train, tmp_path: Path, ill: Callable[[], None], *overrides: str, strategy: str = "ddp"
) -> list[int]:
    """The processes of a run, the second of which is ill."""
    port = free_port()

    def work(rank: int) -> None:
        become_rank(rank, 2, port)
        if rank:
            ill()
        where = (f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.precision=32-true")
        train(*PARTS, *where, *overrides, name="two")

    return [forked(lambda rank=rank: work(rank), tmp_path / f"said{rank}") for rank in range(2)]


def one_line(said: Path) -> str:
    lines = [line for line in said.read_text().splitlines() if "error: " in line]
    assert len(lines) == 1, said.read_text()
    assert "Traceback" not in said.read_text()
    return lines[0]


def test_a_run_ends_when_one_of_its_processes_is_killed_and_goes_on_alone(
    train: Train, tmp_path: Path
) -> None:
    well, ill = on_two(train, tmp_path, lambda: install("training step", 4, kill))
    assert ended(ill) == -signal.SIGKILL
    assert ended(well, 30) == 2
    assert ("another process of the run has ended, or has not answered") in one_line(
        tmp_path / "said0"
    )
    folder = train("trainer=cpu", f"trainer.max_steps={LAST}", "resume=true", name="two")
    assert (folder / f"checkpoints/step_{LAST}.ckpt").exists()


HANGS = {
    "in a step": ("ddp", "training step", 4),
    "in an exchange": ("ep", "exchange rows", 8),
}


@pytest.mark.nightly
@pytest.mark.parametrize(("strategy", "place", "visit"), HANGS.values(), ids=HANGS)
def test_a_process_that_hangs_ends_the_run_within_the_time_out(
    train: Train, tmp_path: Path, strategy: str, place: str, visit: int
) -> None:
    well, ill = on_two(
        train,
        tmp_path,
        lambda: install(place, visit, partial(time.sleep, 100)),
        "trainer.timeout_s=4",
        strategy=strategy,
    )
    assert ended(well, 40) == 2
    assert ("another process of the run has ended, or has not answered") in one_line(
        tmp_path / "said0"
    )
    os.kill(ill, signal.SIGTERM)  # as the launcher does
    assert ended(ill, 20) == 128 + signal.SIGTERM
    assert newest(tmp_path / "runs/two/checkpoints")[0] is not None


@pytest.mark.parametrize("trainer", ["ddp", "fsdp", "ep"])
def test_a_sweep_that_would_start_processes_is_refused(
    train: Train, capsys: pytest.CaptureFixture[str], trainer: str, tmp_path: Path
) -> None:
    sweep = (
        f"trainer={trainer}",
        "trainer.accelerator=cpu",
        "seed=1,2",
        "run=null",
        "--multirun",
    )
    with pytest.raises(SystemExit) as end:
        train(*sweep)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert end.value.code == 2
    assert [line[:14] for line in lines] == ["error: job 0 (", "error: job 1 ("]
    assert all("torchrun" in line for line in lines)
    assert not (tmp_path / "runs").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("trainer", ["ddp", "ep"])
@pytest.mark.parametrize(
    "launch", [["torch.distributed.run", "--nproc-per-node=2"], []], ids=["torchrun", "itself"]
)
def test_the_command_line_starts_two_processes(
    text: Path, tmp_path: Path, trainer: str, launch: list[str]
) -> None:
    start = [sys.executable, *(["-m", *launch] if launch else []), str(ROOT / "train.py")]
    base = ("data=text", f"data.path={text}", f"data.cache_dir={tmp_path}/cache", *NANO, "run=two")
    parts = (f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    done = subprocess.run(
        [*start, *base, *parts], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/two/checkpoints/step_2.ckpt").exists()


# --- files


def bit_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bit-flipped": bit_flipped,
    "without its checksum": lambda path: checksum(path).unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: str
) -> None:
    for step in (2, 4):
        write_atomically(
            {"global_step": step, "x": torch.rand(100)}, tmp_path / f"step_{step}.ckpt"
        )
    DAMAGE[damage](tmp_path / "step_4.ckpt")
    path, messages = newest(tmp_path)
    assert path == tmp_path / "step_2.ckpt"
    assert len(messages) == 1
    assert "step_4.ckpt" in messages[0]


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_older_checkpoint(
    train: Train, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train()
    room = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * (room - 200_000))
    line = mistake(train, capsys, "resume=true", "trainer.max_steps=4")
    assert "cannot be written" in line
    path, damaged = newest(folder / "checkpoints")
    assert path == folder / "checkpoints/step_2.ckpt"
    assert damaged == []
    (small_disk / "filler").unlink()
    train("resume=true", "trainer.max_steps=4")
    assert newest(folder / "checkpoints")[0] == folder / "checkpoints/step_4.ckpt"


def test_a_folder_that_cannot_be_written_is_one_line(
    train: Train, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for overrides, name in ((("resume=true", "trainer.max_steps=4"), "run"), ((), "other")):
        with pytest.raises(SystemExit) as end:
            train(*overrides, name=name)
        assert end.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(lines) == 1
        assert "cannot be written (Read-only file system)" in lines[0]
    assert newest(folder / "checkpoints")[0] == folder / "checkpoints/step_2.ckpt"


def test_a_cache_deleted_during_the_run_does_not_disturb_it(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    straight = train(*PARTS, name="straight")
    # undone at the end
    install("training step", 3, lambda: shutil.rmtree(cache))
    assert_same_end(straight, train(*PARTS, f"data.cache_dir={cache}", name="deleted"))


def test_a_truncated_cache_is_built_anew(train: Train, tmp_path: Path) -> None:
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    straight = train(*PARTS, cache, name="straight")
    tokens = next((tmp_path / "cache").glob("*/train.0.tokens"))
    tokens.write_bytes(tokens.read_bytes()[:1000])
    assert_same_end(straight, train(*PARTS, cache, name="again"))


def test_a_text_that_shrank_is_not_gone_on_with(
    train: Train, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.txt"
    shutil.copy(text, own)
    train(f"data.path={own}")
    own.write_text(own.read_text()[:100_000])
    assert "other text" in mistake(
        train, capsys, f"data.path={own}", "resume=true", "trainer.max_steps=3"
    )


# --- numbers


def test_a_weight_that_is_not_finite_ends_the_run_with_its_name(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    # an expert without tokens would not be noticed
    folder = train("router.select.k=8")
    path = folder / "checkpoints/step_2.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["model.blocks.1.ffn.experts.routed.w_in"][3, 0, 0] = math.nan
    torch.save(checkpoint, path)
    checksum(path).write_text(digest(path))
    line = mistake(train, capsys, "resume=true", "trainer.max_steps=4")
    assert "blocks.1.ffn.experts.routed.w_in[3]" in line
    assert newest(folder / "checkpoints")[0] == path


def spoil() -> None:
    """Makes the third step's loss not a number."""
    forward = LanguageModel._forward_without_hooks

    def spoiled(module: LanguageModel, batch: Any, micro: int) -> Any:
        nll, routings = forward(module, batch, micro)
        return nll * (math.nan if module.global_step == 2 else 1.0), routings

    LanguageModel._forward_without_hooks = spoiled  # type: ignore[method-assign]


@pytest.fixture
def ill(monkeypatch: pytest.MonkeyPatch) -> None:
    # undone at the end
    monkeypatch.setattr(
        LanguageModel, "_forward_without_hooks", LanguageModel._forward_without_hooks
    )
    spoil()


@pytest.mark.parametrize("strategy", ["ddp", "ep"])
def test_a_loss_that_is_not_finite_on_one_rank_is_met_by_all(
    train: Train, tmp_path: Path, strategy: str
) -> None:
    for skipped, status in ((0, 2), (1, 0)):
        parts = (f"trainer.skip_bad_steps={skipped}",)
        ranks = on_two(train, tmp_path, spoil, *parts, strategy=strategy)
        assert [ended(rank) for rank in ranks] == [status, status]
        said = (tmp_path / "said0").read_text()
        assert "step 2: " in said
        assert "is not finite" in said
        shutil.rmtree(tmp_path / "runs/two")


def test_a_loss_that_is_not_finite_ends_the_run(
    train: Train, capsys: pytest.CaptureFixture[str], ill: None
) -> None:
    line = mistake(train, capsys, *PARTS)
    assert "step 2: " in line
    assert "trainer.skip_bad_steps=1" in line


def test_a_bad_step_that_is_skipped_changes_nothing_and_is_not_repeated(
    train: Train, ill: None
) -> None:
    parts = (
        *PARTS,
        "trainer.skip_bad_steps=1",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=9",
    )
    straight = train(*parts, name="straight")
    two, three, four = (
        torch.load(straight / f"checkpoints/step_{n}.ckpt", weights_only=True) for n in (2, 3, 4)
    )
    assert same(two["state_dict"], three["state_dict"])
    assert same(two["optimizer_states"][0]["state"], three["optimizer_states"][0]["state"])
    assert not same(three["state_dict"], four["state_dict"])
    train(*parts, "trainer.max_steps=3", name="resumed")
    assert_same_end(straight, train(*parts, "resume=true", name="resumed"))


def test_jumping_losses_and_idle_experts_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    warnings = Warnings(spike_deviations=6.0, dead_steps=10, effective_share=0.5, logit_rms=30.0)
    for step in range(40):
        warnings.check_loss(2.0 + 0.01 * (step % 3), 6.0, step)
    warnings.check_load(
        torch.tensor([[5.0, 5.0, 0.0, 5.0], [20.0, 0.0, 0.0, 0.0], [97.0, 1.0, 1.0, 1.0]]), 40
    )
    warnings.check_logits(torch.tensor([3.0, 31.0]), 40)
    warnings.check_loss(3.0, 6.0, 41)
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "warning: step 40: router 1 gave nothing to 3 of 4 experts for 10 steps",
        "warning: step 40: router 2 has collapsed: its load is as uneven as if 1.2 of 4 experts "
        "worked",
        "warning: step 40: the logits of router 1 explode (root mean square 31)",
        "warning: step 41: the loss jumped to 3.000, from 2.010 in the steps before",
    ]


def test_idle_experts_are_warned_of_in_a_run(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    # 32 tokens a step
    layout = ("experts=coarse", "experts.num_experts=64", "experts.top_k=1", "data.seq_len=8")
    train(*layout, "callbacks=brief", "callbacks.warnings.dead_steps=1", "callbacks.samples=null")
    warnings = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("warning: step 1: router")
    ]
    assert len(warnings) == 2, "both layers of the nano model"
    assert all(
        "of 64 experts for 1 steps; raise the weight of a balance term" in line for line in warnings
    )


def test_exploding_logits_are_warned_of_in_a_run(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = ("callbacks=brief", "callbacks.warnings.dead_steps=2", "callbacks.samples=null")
    train(
        *watched,
        "callbacks.warnings.logit_rms=1e-3",
        "router=oracle",
        "router.score.learned=true",
        "balance=none",
    )
    warnings = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("warning: step 2: the logits")
    ]
    assert (
        len(warnings) == 2 and "inf" not in warnings[0] and ("add z_loss to balance") in warnings[0]
    )


@pytest.mark.nightly
def test_a_compiled_run_trains(train: Train) -> None:
    train("trainer.compile=true")


def test_the_threads_are_in_the_config_and_another_number_is_named(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\n  threads: 1\n" in (train() / "config.yaml").read_text()
    train("resume=true", "trainer.threads=2", "trainer.max_steps=3")
    torch.set_num_threads(1)
    assert "trainer.threads=2, not 1" in capsys.readouterr().err


# --- any values

NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 3, 4, 7, 16, 0.5, 1e-9, 1e9, "null", "abc", "true", "[1,2]", ".nan", ".inf", "''"]
)
KEYS = [
    "model.dim",
    "model.num_layers",
    "model.num_heads",
    "model.num_kv_heads",
    "model.hidden_dim",
    "model.first_dense",
    "model.moe_every",
    "model.rope_theta",
    "model.norm_eps",
    "model.init_std",
    "model.activation_checkpointing",
    "experts.num_experts",
    "experts.top_k",
    "experts.hidden_dim",
    "experts.segments",
    "experts.num_shared",
    "router.select.k",
    "router.weigh.normalize",
    "router.weigh.scale",
    "balance.aux.weight",
    "optimizer.lr",
    "optimizer.eps",
    "optimizer.weight_decay",
    "schedule.total_steps",
    "schedule.warmup_steps",
    "data.seq_len",
    "data.batch_size",
    "data.micro_batch_size",
    "data.val_rows",
    "data.num_workers",
    "trainer.devices",
    "trainer.val_every",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.keep_checkpoints",
    "trainer.gradient_clip_val",
    "trainer.timeout_s",
    "trainer.ep_size",
    "trainer.threads",
    "trainer.skip_bad_steps",
    "seed",
]
# no strategy with a process group: its threads would not survive the forks of the tests that follow
CHOICES = (
    [
        "router=" + name
        for name in (
            "topk",
            "switch",
            "gru",
            "hash",
            "top_p",
            "relu",
            "sinkhorn",
            "expert_choice",
            "no",
        )
    ]
    + [
        "experts=" + name
        for name in ("coarse", "dense", "grove", "longcat", "moepp", "latent", "no")
    ]
    + [
        "balance=[aux,loss_free]",
        "balance=none",
        "balance=[quantile]",
        "tokenizer=bpe",
        "trainer=gpu",
        "trainer=fsdp",
        "trainer.precision=bf16-mixed",
        "trainer.precision=8",
    ]
)
VALUES = st.lists(
    st.tuples(st.sampled_from(KEYS), NUMBERS).map(lambda p: f"{p[0]}={p[1]}"),
    min_size=1,
    max_size=2,
)
# honest, and too much for a test
COSTLY = ("=1e9", "=1000000000.0", "num_workers=", "threads=", "trainer.devices=16")


def any_values(train: Train, capsys: pytest.CaptureFixture[str], examples: int) -> None:
    numbers = iter(range(10**6))

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(values=VALUES, choice=st.sampled_from(["", *CHOICES]))
    def ends_well(values: list[str], choice: str) -> None:
        overrides = [choice] * bool(choice) + [
            v for v in values if not any(part in v for part in COSTLY)
        ]
        capsys.readouterr()
        try:
            train(*overrides, "trainer.max_steps=1", name=f"any{next(numbers)}")
        except SystemExit as end:
            said = capsys.readouterr().err
            assert end.code == 2, overrides
            assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1, (
                overrides,
                said,
            )
            assert "Traceback" not in said, overrides

    ends_well()
    torch.set_num_threads(1)


@pytest.mark.nightly
def test_forty_random_configs_train_or_end_in_one_line(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    any_values(train, capsys, 40)


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_a_thousand_random_configs_train_or_end_in_one_line(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    any_values(train, capsys, 1000)
