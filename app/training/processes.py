"""The processes of a run: who starts them, how they meet, and how they come to run under one
config.

The first process decides everything (config, folder, text) and the others receive its decision, so
nothing can be composed differently on two ranks. Lightning starts the others of this machine;
torchrun and Slurm start all of them.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import distributed

from app.registry import UserError

Decision = dict[str, Any]  # plain values
# for the first process may tokenise for hours
UNBOUNDED = timedelta(days=30)


def require_starter(devices: int, num_nodes: int, sweep: bool) -> None:
    """Checks that somebody starts the processes: this one starts those of its node, by running its
    command line again.

    Raises:
        UserError: nobody would start them all.
    """
    if environment().creates_processes_externally:
        return
    if num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={num_nodes}: torchrun or Slurm must start the processes of several "
            "nodes"
        )
    if sweep and devices > 1:
        raise UserError(
            f"trainer.devices={devices}: a sweep cannot start the processes of its jobs; sweep "
            "with one device a job, or launch with torchrun --nproc-per-node=N train.py --multirun "
            "..."
        )


def environment() -> ClusterEnvironment:
    """What has started this process, in Lightning's order; nobody but the user: Lightning."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # we save on SIGTERM ourselves; its requeueing would go on from an older file later
    if SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def started() -> tuple[int, int]:
    """Processes of a node, and nodes, as torchrun or Slurm has started them;
    else one node, a process for each GPU.
    """
    starter = environment()
    if isinstance(starter, TorchElasticEnvironment):
        return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    if isinstance(starter, SLURMEnvironment):
        nodes = int(os.environ["SLURM_NNODES"])
        return starter.world_size() // nodes, nodes
    return max(1, torch.cuda.device_count()), 1


@contextmanager
def agreed(
    decide: Callable[[], Decision], size: Callable[[Decision], int], timeout_s: int
) -> Iterator[Decision]:
    """What the first process of the run decides, on all of them, which have met inside.

    Args:
        decide: called on the first process only, and before others are started: what is impossible
            is told once.
        size: number of processes that a decision needs; 0: it is that nothing is left to do.
        timeout_s: how long a process waits for the others to be there.

    Raises:
        UserError: a process is missing, or there are more or fewer than the decision needs.
    """
    starter = environment()
    if starter.creates_processes_externally:
        yield _shared(starter, lambda: _fitting(decide(), size, _world(starter)), timeout_s)
        return
    decision = decide()
    before = dict(os.environ)
    try:
        if size(decision) > 1:
            # Lightning's public way to start the other processes is inside of Trainer.fit, which
            # is too late: config and folder are decided before.
            _SubprocessScriptLauncher(starter, size(decision), num_nodes=1).launch(lambda: None)
        yield _shared(starter, lambda: decision, timeout_s) if size(decision) > 1 else decision
    finally:  # the next run of this Python process starts its own
        if distributed.is_initialized():
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


def _fitting(decision: Decision, size: Callable[[Decision], int], world: int) -> Decision:
    needed = size(decision)
    if needed not in (0, world):
        raise UserError(
            f"trainer.devices times trainer.num_nodes is {needed}, but {world} processes were "
            "started; make them equal, or auto"
        )
    return decision


def _shared(
    started: ClusterEnvironment, decide: Callable[[], Decision], timeout_s: int
) -> Decision:
    """The first process's decision on every process."""
    rank = _rank(started)
    size = _world(started)
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    if size == 1:
        return decide()
    store = _met(started, rank, size, timeout_s)
    # a sweep decides more than once
    key = f"decision {store.add(f'decisions of {rank}', 1)}"
    if rank:
        store.wait([key], UNBOUNDED)
        decision = json.loads(store.get(key))
        if decision is None:
            # the first process has said why
            raise UserError("")
        return decision
    decision = None
    try:
        decision = decide()
    finally:
        store.set(key, json.dumps(decision))
    return decision


def _met(started: ClusterEnvironment, rank: int, size: int, timeout_s: int) -> distributed.Store:
    """Where all processes of the run have come to.

    Raises:
        UserError: one is missing.
    """
    if not distributed.is_initialized():
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = (
            started.main_address,
            str(started.main_port),
        )
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        timeout = timedelta(seconds=timeout_s)
        try:
            store, *_ = next(distributed.rendezvous("env://", rank, size, timeout=timeout))
            distributed.init_process_group(
                backend, store=_anew(store), rank=rank, world_size=size, timeout=timeout
            )
        except RuntimeError as error:
            raise UserError(
                f"trainer.timeout_s={timeout_s}: after that long not all {size} processes of the "
                f"run were there (this is number {rank}); look at why one did not start, or wait "
                "longer"
            ) from error
    # torch returns the store of a group that exists already by no public function.
    return distributed.distributed_c10d._get_default_store()


def _anew(store: distributed.Store) -> distributed.Store:
    """The store of this attempt: a lone torchrun keeps one for all of them, with the places of
    processes that are gone.

    Those of several nodes begin a new one each time, and count their attempts differently.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return (
        distributed.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        if alone
        else store
    )


def _rank(started: ClusterEnvironment) -> int:
    return (
        started.local_rank() if isinstance(started, LightningEnvironment) else started.global_rank()
    )


def _world(started: ClusterEnvironment) -> int:
    """How many processes were started."""
    return (
        int(os.environ["WORLD_SIZE"])
        if isinstance(started, LightningEnvironment)
        else started.world_size()
    )
