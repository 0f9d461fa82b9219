"""Runs members through Hydra's launchers, and shows how far they are.

A sweep over `member=KEY,...`: the launcher may run its jobs in this process (basic), in others of
this machine (joblib) or on other machines (submitit). What goes wrong in a member is in its record,
and the others go on.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

from hydra.core.global_hydra import GlobalHydra
from rich.live import Live
from rich.table import Table

from app.analysis.curves import table_of
from app.races.plan import Member
from app.races.records import read_record
from app.races.work import DESK, STUDY, hand_out, work
from app.training.messages import console

# seconds between two looks at the members
EVERY = 2.0
LOSS = "Loss/train"


def launch(members: Sequence[Member], overrides: Sequence[str]) -> None:
    """Runs members to their end, under the launcher that the overrides of the race choose.

    Raises:
        Exception: a job has ended without a record, which is a mistake of ours; the others have
            run.
    """
    for member in members:
        hand_out(member)
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    os.environ[STUDY] = str(os.getpid())
    with watched(members):
        sweep = f"member={','.join(member.key for member in members)}"
        batches = hydra.multirun("race", work, [*overrides, sweep], with_log_configuration=False)
    for batch in batches:
        for job in batch:
            # raises what the job has raised
            _ = job.return_value


@contextmanager
def watched(members: Sequence[Member]) -> Iterator[None]:
    """Shows the members while they run: a table in a terminal,
    elsewhere a line for each that ends.
    """
    done = Event()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        thread = Thread(target=_watch, args=(members, live, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _watch(members: Sequence[Member], live: Live, done: Event) -> None:
    start = time.monotonic()
    steps_before = sum(how_far(member)[0] for member in members)
    running = list(members)
    is_last = False
    while not is_last:
        # One more look after the end, so that no outcome is left out.
        is_last = done.wait(EVERY)
        for member in list(running):
            if (DESK / f"{member.key}.json").exists():
                running.remove(member)
                ended = len(members) - len(running)
                live.console.print(f"[{ended}/{len(members)}] {outcome(member)}", markup=False)
        steps = sum(how_far(member)[0] for member in members) - steps_before
        steps_left = sum(member.steps - how_far(member)[0] for member in running)
        seconds_left = None
        if steps > 0:
            seconds_left = steps_left / steps * (time.monotonic() - start)
        live.update(_table(running, seconds_left), refresh=True)


def outcome(member: Member) -> str:
    """Return one line about a member that has ended."""
    record = read_record(DESK / f"{member.key}.json")
    about = " ".join(f"{name}={value}" for name, value in member.about.items())
    if "failed" in record:
        return f"{about}: failed: {record['failed']}"
    return f"{about}: {record['bpb']:.4f} bits per byte"


def how_far(member: Member) -> tuple[int, float]:
    """Steps, and the newest loss in nats per token, of a member that has begun;
    all steps of one that has ended.
    """
    if (DESK / f"{member.key}.json").exists():
        return member.steps, float("nan")
    points = table_of(member.folder, [LOSS]).get(LOSS)
    return points[-1] if points else (0, float("nan"))


def _table(members: Sequence[Member], seconds_left: float | None) -> Table:
    title = f"{len(members)} runs to go"
    if seconds_left is not None:
        title += f", {timedelta(seconds=round(seconds_left))} left"
    table = Table("contestant", "size", "lr", "seed", "step", "loss", title=title)
    for member in members:
        step, loss = how_far(member)
        # A member without a step waits for its turn.
        if step:
            names = [str(member.about[key]) for key in ("contestant", "size", "lr", "seed")]
            table.add_row(*names, f"{step}/{member.steps}", f"{loss:.2f}")
    return table
