"""Checkpoints of which every rank writes its own part, by torch.distributed.checkpoint.

`step_N.ckpt` is then a folder: the parts of all ranks, `.metadata`, which says what lies where, and
`plain.pt`, which has everything that is no weight. It gets its name when all of it is on the disk.
Any number of ranks reads it under any strategy, and `python -m app.runs.gather FOLDER FILE` makes
one file of it.
"""

import io
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.optim import Optimizer

from app.fault_points import fault_point
from app.registry import UserError
from app.training.files import Checkpoint, checksum, digest, remove, settle, sums, write_whole

PLAIN = "plain.pt"
WHERE = ".metadata"
# model/NAME and optimizer/NUMBER/PARAMETER/SLOT
Flat = dict[str, Tensor]


def write_shards(
    checkpoint: Checkpoint, path: Path, background: ProcessGroup | None
) -> Callable[[], None]:
    """Begins to write a checkpoint of Lightning's layout, on all ranks together; what it returns
    ends with the writing.

    Args:
        checkpoint: its tensors are this rank's parts of them.
        path: what it is called when it is complete.
        background: whose ranks write while training goes on, all that is to be written being copied
            first; None: what is returned writes.
    """
    flat, plain = _parted(checkpoint)
    writer = ShardWriter(path, plain)
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    if background is None:
        return partial(
            _finish, path, partial(dcp.save, flat, storage_writer=writer, planner=planner)
        )
    pending = dcp.async_save(flat, storage_writer=writer, planner=planner, process_group=background)
    assert isinstance(pending, Future)
    return partial(_finish, path, pending.result)


def _finish(path: Path, write: Callable[[], object]) -> None:
    """Removes what there is of a checkpoint that cannot be written.

    Raises:
        OSError: it cannot be written, on some rank.
    """
    try:
        write()
    except CheckpointException as failed:
        errors = [error for error, _ in failed.failures.values()]
        # by all ranks at once
        shutil.rmtree(path.with_suffix(".part"), ignore_errors=True)
        raise next((error for error in errors if isinstance(error, OSError)), errors[0]) from failed


def read_shards(path: Path, only_shapes: bool) -> Checkpoint:
    """The whole checkpoint in Lightning's layout, in one process.

    Raises:
        UserError: it is damaged, or would run code.
    """
    reader = ShardReader(path)
    device = "meta" if only_shapes else "cpu"
    with _damage_in_one_line(path):
        known = reader.tensors().items()
        flat = {
            name: torch.empty(of.size, dtype=of.properties.dtype, device=device)
            for name, of in known
        }
        if not only_shapes:
            # that it is one process
            with warnings.catch_warnings(action="ignore"):
                dcp.load(flat, storage_reader=reader, planner=_load_planner(), no_dist=True)
        return _joined(flat, _plain(path))


@contextmanager
def _damage_in_one_line(path: Path) -> Iterator[None]:
    """Report parts that are missing, cut off or of other sizes than `.metadata` says.

    Raises:
        UserError: torch cannot put them together. It raises many kinds of errors then, some of them
            on several lines.
    """
    try:
        yield
    except UserError:
        raise
    except CheckpointException as failed:
        first = next(iter(failed.failures.values()))[0]
        raise UserError(
            f"{path}: is damaged: {' '.join(str(first).split())[:200]}; restore it"
        ) from failed
    except Exception as error:
        raise UserError(
            f"{path}: is damaged: {' '.join(str(error).split())[:200]}; restore it"
        ) from error


def load_shards(path: Path, module: torch.nn.Module, optimizers: list[Optimizer]) -> Checkpoint:
    """Fills this rank's parts of a model and its optimizers; no rank sees the whole. Returns all
    else.

    Raises:
        UserError: it is damaged, or would run code.
    """
    reader = ShardReader(path)
    state = module.state_dict()
    flat = {f"model/{name}": value for name, value in state.items()}
    for name, of in reader.tensors().items():
        kind, *place = name.split("/")
        if kind == "optimizer":
            flat[name] = _empty_like(_parameters(optimizers[int(place[0])])[int(place[1])], of)
    dcp.load(flat, storage_reader=reader, planner=_load_planner())
    checkpoint = _joined(flat, _plain(path))
    module.load_state_dict(checkpoint.pop("state_dict"))
    for optimizer, saved in zip(optimizers, checkpoint.pop("optimizer_states"), strict=True):
        optimizer.load_state_dict(saved)
    return checkpoint


class ShardWriter(dcp.FileSystemWriter):
    """Writes the parts under another name, each rank with its own sum;
    the first rank gives the whole its name.
    """

    def __init__(self, path: Path, plain: dict[str, object]) -> None:
        super().__init__(path.with_suffix(".part"))
        self.target = path
        self.plain = io.BytesIO()
        torch.save(plain, self.plain)  # now: training goes on

    def storage_meta(self) -> StorageMeta | None:
        """Nothing about this machine."""
        return None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        fault_point("write part")
        try:
            written = super().write_data(plan, planner)
        # torch stumbles over it again, and the other ranks hear of the last one only
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error)  # noqa: B904
        fault_point("part without checksum")
        for part in Path(self.path).glob(f"{plan.storage_data.prefix}*.distcp"):
            write_whole(checksum(part), digest(part))
        return written

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        fault_point("parts without metadata")
        super().finish(metadata, results)
        folder = Path(self.path)
        write_whole(folder / PLAIN, self.plain.getvalue())
        known = {name: digest(folder / name) for name in (WHERE, PLAIN)}
        for part in folder.glob("*.distcp"):
            known[part.name] = checksum(part).read_text(encoding="utf-8")
            checksum(part).unlink()
        write_whole(checksum(self.target), sums(known) + "\n")
        settle(folder)
        # a damaged one, from before the run went on
        remove(self.target)
        fault_point("rename checkpoint folder")
        folder.rename(self.target)
        fault_point("checkpoint folder renamed")
        settle(self.target.parent)


class ShardReader(dcp.FileSystemReader):
    """Reads what a `ShardWriter` has written, and nothing that would run code."""

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        path = Path(self.path) / WHERE
        try:
            with path.open("rb") as file:
                metadata = _Unpickler(file).load()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        # whatever a damaged pickle ends in
        except Exception as error:
            raise UserError(
                f"{path}: is refused: it is no list of tensors ({' '.join(str(error).split())})"
            ) from error
        if not isinstance(metadata, Metadata):
            raise UserError(f"{path}: is refused: it is no list of tensors")
        metadata.storage_meta = StorageMeta()
        return metadata

    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Sizes and types."""
        known = self.read_metadata().state_dict_metadata
        return {name: of for name, of in known.items() if isinstance(of, TensorStorageMetadata)}


class _Unpickler(pickle.Unpickler):
    """Knows only the classes that say where tensors lie."""

    MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    NAMES = (
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
        "_StorageInfo",
    )

    def find_class(self, module: str, name: str) -> Any:
        ours = module in self.MODULES and name in self.NAMES
        plain = module == "torch" and (
            name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)
        )
        if not (ours or plain or (module, name) == ("torch.serialization", "_get_layout")):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _parted(checkpoint: Checkpoint) -> tuple[Flat, dict[str, object]]:
    """The tensors of the model and its optimizers, and all else."""
    flat = {f"model/{name}": value for name, value in checkpoint["state_dict"].items()}
    plain = {
        key: value
        for key, value in checkpoint.items()
        if key not in ("state_dict", "optimizer_states")
    }
    plain["optimizer_states"] = []
    for number, saved in enumerate(checkpoint["optimizer_states"]):
        state: dict[int, dict[str, object]] = {}
        for parameter, slots in saved["state"].items():
            state[parameter] = {
                slot: value for slot, value in slots.items() if not isinstance(value, Tensor)
            }
            tensors = slots.keys() - state[parameter].keys()
            flat |= {f"optimizer/{number}/{parameter}/{slot}": slots[slot] for slot in tensors}
        plain["optimizer_states"].append(saved | {"state": state})
    return flat, plain


def _joined(flat: Flat, plain: dict[str, Any]) -> Checkpoint:
    state: Flat = {}
    for name, value in flat.items():
        kind, *place = name.split("/")
        if kind == "model":
            state[place[0]] = value
        else:
            number, parameter, slot = place
            plain["optimizer_states"][int(number)]["state"][int(parameter)][slot] = value
    return plain | {"state_dict": state}


def _plain(path: Path) -> Checkpoint:
    try:
        plain: dict[str, object] = torch.load(path / PLAIN, map_location="cpu", weights_only=True)
        if not isinstance(plain, dict):
            raise RuntimeError("it holds no dictionary")
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path / PLAIN}: is refused: it is no file of plain values ({reason})"
        ) from error
    return plain


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """As its state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _empty_like(parameter: Tensor, of: TensorStorageMetadata) -> Tensor:
    """A tensor for the optimizer's state; split as the parameter is where it has its shape."""
    if of.size == parameter.shape:
        return torch.empty_like(parameter, dtype=of.properties.dtype)
    return torch.empty(of.size, dtype=of.properties.dtype)


def _load_planner() -> dcp.DefaultLoadPlanner:
    return dcp.DefaultLoadPlanner(flatten_state_dict=False)
