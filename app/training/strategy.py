"""From the words of `trainer=...` to Lightning's strategy."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import distributed
from torch.optim import Optimizer

from app.training.checkpoints import CheckpointFiles
from app.training.files import Checkpoint
from app.training.shards import load_shards

Format = Literal["auto", "file", "sharded", "async"]
Accumulate = Literal["sharded", "whole"]
# parameters from which on `auto` is `sharded`: a file of 16 GB, which the first rank would hold
MANY = 10**9


class FullySharded(ModelParallelStrategy):
    """FSDP2; a checkpoint is one file, or a folder of which every rank writes its part,
    perhaps while it trains on.
    """

    def __init__(
        self, checkpoint_format: Format, accumulate: Accumulate, ranks: int, timeout: timedelta
    ) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, timeout=timeout)
        self.checkpoint_format = checkpoint_format
        self.accumulate = accumulate
        self.background = None
        self.wait_at_most = timeout

    def setup(self, trainer: lightning.Trainer) -> None:
        super().setup(trainer)
        assert self.model is not None
        size = sum(parameter.numel() for parameter in self.model.parameters())
        parted = (
            size >= MANY if self.checkpoint_format == "auto" else self.checkpoint_format != "file"
        )
        # Lightning decides by this attribute whether states are whole or parts of this rank; its
        # argument is read before the format of the checkpoint is known.
        self._save_distributed_checkpoint = parted
        if self.checkpoint_format == "async":
            self.background = distributed.new_group(backend="gloo", timeout=self.wait_at_most)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Leaves the gradients of a micro-batch whole on this rank if that was chosen;
        else they are split as usual.
        """
        assert self.lightning_module is not None
        model: Any = self.lightning_module.model
        # and of all parts of it
        model.set_requires_gradient_sync(self.accumulate == "sharded")
        yield
        model.set_requires_gradient_sync(True)

    def lightning_module_state_dict(self) -> dict[str, object]:
        if not self._save_distributed_checkpoint:
            return super().lightning_module_state_dict()
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if not self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        return optimizer.state_dict()

    def save_checkpoint(
        self, checkpoint: Checkpoint, filepath: Any, storage_options: object = None
    ) -> None:
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        else:
            assert isinstance(self.checkpoint_io, CheckpointFiles)
            self.checkpoint_io.save_parts(checkpoint, Path(filepath), self.background)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(checkpoint_path).is_file():
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        assert self.lightning_module is not None
        return load_shards(Path(checkpoint_path), self.lightning_module, self.optimizers)


def make_strategy(
    name: Literal["auto", "ddp", "fsdp", "ep"],
    ranks: int,
    timeout_s: int,
    checkpoint_format: Format,
    accumulate: Accumulate,
) -> Strategy | str:
    """Lightning's strategy for a word; a rank that waits longer than
    `timeout_s` for another ends the run.
    """
    timeout = timedelta(seconds=timeout_s)
    if name == "ddp":
        return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)
    if name in ("fsdp", "ep"):
        return FullySharded(checkpoint_format, accumulate, ranks, timeout)
    return "auto"
