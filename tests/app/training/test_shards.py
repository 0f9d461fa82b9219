"""Checkpoints in parts: what is refused, what a damage or a full disk leaves,
and one file of them.
"""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed

from app.registry import UserError
from app.runs.gather import main as gather
from app.training.checkpoints import CheckpointFiles, newest, read_checkpoint, write_atomically
from app.training.files import checksum, digest
from app.training.shards import WHERE, write_shards
from tests.support.interrupted import same
from tests.support.ranks import each

STATE = {
    "state_dict": {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.tensor([1, 2])},
    "optimizer_states": [
        {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}, 1: {"count": 7}},
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
        }
    ],
    "global_step": 3,
    "tokens_seen": 96,
}


def written(folder: Path, step: int) -> Path:
    path = folder / f"step_{step}.ckpt"
    write_shards(STATE, path, None)()
    return path


def test_what_is_written_is_read_back_and_gathered_into_one_file(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    assert same(read_checkpoint(path), STATE)
    gather([str(path), str(tmp_path / "whole/one.ckpt")])
    assert same(read_checkpoint(tmp_path / "whole/one.ckpt"), STATE)
    assert (
        digest(tmp_path / "whole/one.ckpt")
        == checksum(tmp_path / "whole/one.ckpt").read_text().strip()
    )


def test_shapes_are_told_without_the_weights(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    shapes = read_checkpoint(path, only_shapes=True)
    assert {name: (tuple(v.shape), v.device.type) for name, v in shapes["state_dict"].items()} == {
        "model.a": ((2, 3), "meta"),
        "model.b": ((2,), "meta"),
    }
    assert shapes["tokens_seen"] == 96


@pytest.mark.parametrize("name", ["__0_0.distcp", WHERE, "plain.pt"])
@pytest.mark.parametrize("damage", ["a flipped bit", "missing", "truncated"])
def test_any_damaged_file_of_a_folder_makes_the_one_before_the_newest(
    tmp_path: Path, name: str, damage: str
) -> None:
    before = written(tmp_path, 1)
    path = written(tmp_path, 2)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data if damage == "a flipped bit" else data[:-1])
    if damage == "missing":
        (path / name).unlink()
    assert newest(tmp_path) == (before, [f"{path} is damaged (its checksum differs)"])
    with pytest.raises(UserError, match=r"is damaged|is no checkpoint"):
        gather([str(path), str(tmp_path / "one.ckpt")])


def as_file(folder: Path, step: int) -> Path:
    path = folder / f"step_{step}.ckpt"
    write_atomically(STATE, path)
    return path


@pytest.mark.parametrize("first", [written, as_file])
@pytest.mark.parametrize("second", [written, as_file])
def test_a_checkpoint_takes_the_place_of_a_damaged_one_of_its_step(
    tmp_path: Path, first: Callable[..., Path], second: Callable[..., Path]
) -> None:
    path = first(tmp_path, 1)
    checksum(path).write_text("0")
    assert newest(tmp_path)[0] is None
    assert second(tmp_path, 1) == path
    assert newest(tmp_path) == (path, [])
    assert same(read_checkpoint(path), STATE)


@pytest.mark.parametrize("name", [WHERE, "plain.pt"])
def test_a_folder_that_would_run_code_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, 3)
    ran = tmp_path / "ran"
    evil = type("Evil", (), {"__reduce__": lambda self: (os.mkdir, (str(ran),))})()
    (path / name).write_bytes(pickle.dumps(evil))
    if name == "plain.pt":
        torch.save(evil, path / name)
    checksum(path).write_text(digest(path))
    with pytest.raises(UserError, match="is refused"):
        read_checkpoint(path)
    assert not ran.exists()


def missing(part: Path) -> None:
    part.unlink()


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-40])


def empty(part: Path) -> None:
    part.write_bytes(b"")


def link(part: Path) -> None:
    part.rename(part.parent.parent / "elsewhere")
    part.symlink_to(part.parent.parent / "elsewhere")


def folder(part: Path) -> None:
    part.unlink()
    part.mkdir()


@pytest.mark.parametrize("damage", [missing, cut, empty, link, folder])
@pytest.mark.parametrize("name", ["__0_0.distcp", WHERE, "plain.pt"])
def test_a_damaged_part_is_one_line_although_the_checksum_is_right(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = written(tmp_path, 3)
    damage(path / name)
    if damage is not folder:
        checksum(path).write_text(digest(path))
    with pytest.raises(UserError) as refusal:
        read_checkpoint(path)
    assert str(refusal.value).startswith(str(path)) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/none.ckpt", "one.ckpt"], "is no checkpoint"),
        (["{path}", "one.bin"], r"must end in \.ckpt"),
        (["{path}", "{path}"], "exists; choose another name"),
    ],
)
def test_what_cannot_be_gathered_is_told(tmp_path: Path, words: list[str], said: str) -> None:
    path = written(tmp_path, 3)
    with pytest.raises(UserError, match=said):
        gather([word.format(path=path) for word in words])


@pytest.mark.parametrize("background", [False, True], ids=["training waits", "training goes on"])
def test_a_full_disk_is_told_on_all_ranks_and_leaves_no_part(
    small_disk: Path, tmp_path: Path, background: bool
) -> None:
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 2_000_000))
    big = STATE | {"state_dict": {f"model.{i}": torch.zeros(100_000) for i in range(9)}}  # 3.6 MB

    def work(rank: int) -> str | None:
        distributed.init_process_group("gloo", rank=rank, world_size=2)
        files = CheckpointFiles()
        group = distributed.new_group(backend="gloo") if background else None
        files.save_parts(big, small_disk / "step_1.ckpt", group)
        files.wait()
        return files.failure

    line = f"{small_disk}/step_1.ckpt: cannot be written (No space left on device)"
    assert each(work, 2, tmp_path) == [line, line]
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
