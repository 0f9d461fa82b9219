"""Private parts of Lightning, torch, Hydra and OmegaConf that are used, each with a comment there.

A new version of a library that renames one fails here by its name, before a run fails oddly.
"""

import inspect

import pytest
import torch
from hydra.core.utils import JobReturn
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from omegaconf import OmegaConf
from torch._C import _distributed_c10d
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)


def test_lightnings_training_loop_counts_and_broadcasts_where_it_is_stopped(
    trainer: Trainer,
) -> None:
    loop = trainer.fit_loop.epoch_loop
    assert callable(loop._broadcast_sigterm_tensor)
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(type(loop))
    assert loop._batches_that_stepped == 0
    assert "_batches_that_stepped" in inspect.getsource(type(loop))


def test_lightnings_logger_connector_has_the_flag_of_the_first_batch(trainer: Trainer) -> None:
    assert trainer._logger_connector._first_loop_iter is None


def test_lightnings_csv_logger_takes_a_writer(tmp_path) -> None:
    logger = CSVLogger(tmp_path)
    logger._experiment = writer = object()  # type: ignore[assignment]
    assert logger.experiment is writer


def test_lightnings_launcher_starts_processes_before_it_calls() -> None:
    parameters = inspect.signature(_SubprocessScriptLauncher).parameters
    assert list(parameters)[:3] == ["cluster_environment", "num_processes", "num_nodes"]


def test_lightnings_sharded_strategy_asks_its_attribute_for_the_form_of_a_checkpoint() -> None:
    strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
    assert strategy._save_distributed_checkpoint is False


def test_torch_reads_and_sets_the_timeout_of_a_group() -> None:
    assert list(inspect.signature(distributed_c10d._set_pg_timeout).parameters) == [
        "timeout",
        "group",
    ]
    assert callable(distributed_c10d._get_default_store)
    assert hasattr(torch.distributed.ProcessGroup, "_get_backend")
    assert hasattr(_distributed_c10d.Backend.Options, "_timeout")


def test_torch_tells_which_operations_draw() -> None:
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            draws = torch.Tag.nondeterministic_seeded in func.tags and func._schema.is_mutable
            seen.append(draws)
            return func(*args, **kwargs or {})

    with Watching():
        torch.zeros(1).normal_()
    assert seen[-1] and not all(seen)


def test_a_failed_job_of_hydra_keeps_its_error() -> None:
    job = JobReturn()
    job._return_value = error = ValueError()
    assert job._return_value is error


def test_omegaconf_gives_the_root_of_a_node() -> None:
    config = OmegaConf.create({"a": {"b": 1}})
    assert config.a._get_root() is config
