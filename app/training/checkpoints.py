"""Checkpoints that survive: complete or absent, and checked by their sum.

A file is written under another name, flushed to the disk and renamed; its SHA-256 stands beside it.
A damaged file is skipped for the one before. Files are read as tensors and plain values only: what
would run code on loading is refused. A checkpoint may also be a folder (app.training.shards), of
which the same holds.
"""

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed import ProcessGroup

from app.fault_points import fault_point
from app.registry import UserError
from app.training.files import Checkpoint, checksum, digest, remove, settle, write_whole
from app.training.shards import PLAIN, read_shards, write_shards

# in the header of a weight file
SUM = "sha256"


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints;
    `failure` says why the last one could not be written.
    """

    failure: str | None = None
    # of which the ranks still write their parts
    pending: tuple[Path, Callable[[], None]] | None = None

    def save_parts(
        self, checkpoint: Checkpoint, path: Path, background: ProcessGroup | None
    ) -> None:
        """Called on all ranks, each of which writes its part,
        the ranks of `background` while training goes on.
        """
        self.wait()
        if self.failure is None:
            self.pending = path, write_shards(checkpoint, path, background)
        if background is None:
            self.wait()

    def wait(self) -> None:
        """Until nothing is written any more;
        all ranks hear of a failure, so it raises nothing either.
        """
        if self.pending is not None:
            (path, finish), self.pending = self.pending, None
            try:
                finish()
            except OSError as error:
                self.failure = f"{path}: cannot be written ({error.strerror})"

    def save_checkpoint(
        self, checkpoint: Checkpoint, path: Any, storage_options: Any = None
    ) -> None:
        """Called on the first rank only, so it raises nothing:
        the other ranks would wait for it.
        """
        try:
            write_atomically(checkpoint, Path(path))
            self.failure = None
        except OSError as error:
            self.failure = f"{path}: cannot be written ({error.strerror})"

    def load_checkpoint(
        self, path: Any, map_location: object = "cpu", weights_only: bool | None = True
    ) -> Checkpoint:
        return read_checkpoint(Path(path))


def write_atomically(checkpoint: Checkpoint, path: Path) -> None:
    """Write a file under another name and, once it is on the disk with its checksum, rename it.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        fault_point("write checkpoint")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        fault_point("checkpoint without checksum")
        write_whole(checksum(path), digest(part) + "\n")
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        # torch's writer raises RuntimeError over it on a full disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    # a damaged one, from before the run went on
    if path.is_dir():
        remove(path)
    fault_point("checksum without checkpoint")
    part.replace(path)
    settle(path.parent)


def is_checkpoint(path: Path) -> bool:
    """Whether there is one, a file or a folder; a file may turn out to be something else."""
    return path.is_file() or (path / PLAIN).is_file()


def read_checkpoint(path: Path, only_shapes: bool = False) -> Checkpoint:
    """A checkpoint: tensors and plain values.

    This is the only way to open one, and it always compares the checksum.

    Args:
        path: a file, whose tensors are read when they are used, or a folder.
        only_shapes: the tensors of the model and its optimizers are not looked at; those of a
            folder are not read.

    Raises:
        UserError: It is missing or damaged; holds anything else, which may be a program; or is none
            of ours.
    """
    damage = damage_of(path)
    if damage is not None:
        raise UserError(f"{path}: is damaged ({damage}); choose another checkpoint, or restore it")
    if path.is_dir():
        return require_layout(read_shards(path, only_shapes), path)
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: is refused: it is no file of tensors and plain values ({reason})"
        ) from error
    return require_layout(checkpoint, path)


def require_layout(checkpoint: Any, path: Path) -> Checkpoint:
    """Return a checkpoint that has the weights of a model and the step after which it was saved.

    Raises:
        UserError: It has not.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    if not tensors or type(checkpoint.get("global_step")) is not int:
        raise UserError(
            f"{path}: is no checkpoint of ours: it has no state_dict and step; restore it, or "
            "delete it"
        )
    return dict(checkpoint)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The undamaged checkpoint of the highest step, and a line for every damaged one above it."""
    damaged: list[str] = []
    for _, path in reversed(steps(folder)):
        damage = damage_of(path)
        if damage is None:
            return path, damaged
        damaged.append(f"{path} is damaged ({damage})")
    return None, damaged


def damage_of(path: Path) -> str | None:
    """Return the damage of a checkpoint;
    None if its files have the checksum that is beside them.
    """
    try:
        known = checksum(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return f"{checksum(path).name} is not there, or not readable"
    try:
        entries = sorted(path.iterdir()) if path.is_dir() else [path]
        if path.is_dir() and any(entry.is_symlink() or not entry.is_file() for entry in entries):
            return "it has something beside plain files"
        states = [entry.stat() for entry in entries]
        identity = tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)
        return None if known == _digest_once(path.absolute(), identity) else "its checksum differs"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


@cache
def _digest_once(path: Path, identity: tuple[tuple[int, int, int], ...]) -> str:
    """The digest of a checkpoint, computed once while its files do not change."""
    return digest(path)


def write_weight_file(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write tensors as a safetensors file whose header holds their checksum, whole or not at all.

    Args:
        path: The file.
        tensors: The tensors by name; no two may share memory.
        about: Further entries of the header.
    """
    header = {**about, SUM: _sum_of(tensors)}
    write_whole(path, safetensors.torch.save(dict(tensors), metadata=header))


def read_weight_file(path: Path, key: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and its header.

    Args:
        path: The file.
        key: Where the path is in the config, such as `init.checkpoint=`, for the error.

    Raises:
        UserError: The file is missing or damaged, or a tensor holds NaN or infinity. A file from
            elsewhere may have no checksum.
    """
    if not path.is_file():
        raise UserError(f"{key}{path}: no such file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    # OSError, SafetensorError, and KeyError for a dtype that torch does not have
    except Exception as error:
        raise UserError(
            f"{key}{path}: is damaged ({' '.join(str(error).split())}); restore it"
        ) from error
    if header.pop(SUM, None) not in (None, _sum_of(tensors)):
        raise UserError(f"{key}{path}: is damaged (its checksum differs); restore it")
    require_finite(f"{key}{path}", tensors)
    return tensors, header


def require_finite(place: str, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are weights.

    Raises:
        UserError: One holds NaN, infinity or no real numbers; the error begins with `place`.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise UserError(f"{place}: {name} holds NaN, infinity or no real numbers; restore it")


def _sum_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()


def steps(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoints of a folder with their steps, in order."""
    return sorted(
        (int(m[1]), p) for p in folder.glob("*.ckpt") if (m := re.fullmatch(r"step_(\d+)", p.stem))
    )


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was saved, by its name."""
    return int(path.stem.removeprefix("step_"))
