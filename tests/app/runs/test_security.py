"""A config or a checkpoint from elsewhere runs no code:
every attempt here would write a file, and none does.
"""

import os
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from omegaconf import OmegaConf

from app import budget, evaluate, generate, report
from app.config.compose import composed
from app.data.module import build_data
from app.registry import UserError
from app.runs.read import read_run
from app.training.checkpoints import CheckpointFiles, checksum, digest, newest, read_checkpoint
from tests.support.mistakes import mistake

Train = Callable[..., Path]


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def spoil(folder: Path, proof: Path, how: str) -> Path:
    """Puts a harmful object into the newest checkpoint of a run, with a checksum that is right."""
    path, _ = newest(folder / "checkpoints")
    assert path is not None
    if how == "torch":
        torch.save(torch.load(path, weights_only=True) | {"extra": Harmful(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": {}, "extra": Harmful(proof)}))
    checksum(path).write_text(digest(path))
    return path


def test_the_harmful_object_would_have_written_its_file(proof: Path) -> None:
    pickle.loads(pickle.dumps(Harmful(proof)))
    assert proof.exists()


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused(
    train: Train, capsys: pytest.CaptureFixture[str], proof: Path, how: str
) -> None:
    path = spoil(train(), proof, how)
    assert "is refused" in mistake(train, capsys, "resume=true", "trainer.max_steps=3")
    for read in (read_checkpoint, CheckpointFiles().load_checkpoint):
        with pytest.raises((UserError, pickle.UnpicklingError, RuntimeError)):
            read(path)
    with pytest.raises(UserError, match="is refused"):
        read_run(path.parent.parent)
    assert not proof.exists()


TARGETS = {
    "os.system": "must lie in",
    "builtins.open": "must lie in",
    "pathlib.Path.touch": "must lie in",
    "torch.load": "no ",
    "torch.hub.load": "no ",
    "torch.os.system": "no ",
    "torch.serialization.os.system": "no ",
    "torch.utils.cpp_extension.load": "no ",
    "lightning.pytorch.callbacks.callback.os": "no ",
    "lightning.Trainer": "no ",
    "torch.optim.NoSuch": "no ",
    "torch": "no ",
}


@pytest.mark.parametrize("group", ["optimizer", "+callbacks.x"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_a_callback_or_an_optimizer_of_its_package(
    train: Train, capsys: pytest.CaptureFixture[str], proof: Path, target: str, group: str
) -> None:
    line = mistake(train, capsys, "optimizer=adamw", f"{group}._target_={target}")
    assert target in line
    assert TARGETS[target] in line


def test_a_target_inside_a_target_is_not_run(
    train: Train, capsys: pytest.CaptureFixture[str], proof: Path
) -> None:
    mistake(train, capsys, f"optimizer.lr={{_target_:os.mkdir,path:{proof}}}")
    inner = f"{{_target_:os.mkdir,path:{proof}}}"
    mistake(
        train,
        capsys,
        f"+callbacks.x={{_target_:lightning.pytorch.callbacks.Timer,duration:{inner}}}",
    )
    assert not proof.exists()


def test_the_config_of_a_run_folder_cannot_name_what_it_likes(
    train: Train, capsys: pytest.CaptureFixture[str], proof: Path
) -> None:
    path = train() / "config.yaml"
    saved: Any = OmegaConf.load(path)
    harmful = {
        "_target_": "pathlib.Path.touch",
        "self": {"_target_": "pathlib.Path", "_args_": [str(proof)]},
    }
    for group, key in (("optimizer", None), ("callbacks", "x")):
        config = OmegaConf.to_container(saved)
        if key:
            config[group][key] = harmful
        else:
            config[group] = harmful
        OmegaConf.save(OmegaConf.create(config), path)
        assert "must lie in" in mistake(train, capsys, "resume=true", "trainer.max_steps=3")
    assert not proof.exists()


def test_no_name_in_a_config_leads_out_of_the_cache(tmp_path: Path, text: Path) -> None:
    inside = tmp_path / "a/b/cache"
    config = composed(
        [
            "data=mix",
            "tokenizer=bytes",
            f"data.cache_dir={inside}",
            f"data.sources={{x: {{data: text, path: {text}}}}}",
        ]
    )
    for name in ("../../out", "/tmp/out", "..", "a/b"):
        with pytest.raises(UserError, match="must be of letters"):
            build_data(
                config["data"] | {"sources": {name: config["data"]["sources"]["x"]}},
                config["tokenizer"],
                0,
            )
    build_data(config["data"], config["tokenizer"], 0).prepare()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and all(inside in path.parents for path in written)
    places = {path.relative_to(inside).parts[0].removesuffix(".lock") for path in written}
    assert all(re.fullmatch("[0-9a-f]{16}", place) for place in places)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Who was looked up or connected to; it is refused."""
    found: list[Any] = []

    def refuse(*words: Any, **_: Any) -> None:
        found.append(words[-1] if isinstance(words[0], socket.socket) else words[0])
        raise OSError("no network here")

    for owner, name in (
        (socket, "getaddrinfo"),
        (socket, "gethostbyname"),
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    return found


def test_the_guard_sees_who_is_asked(asked: list[Any]) -> None:
    for attempt in (
        lambda: socket.create_connection(("example.org", 80)),
        lambda: urlopen("http://example.org"),
    ):
        with pytest.raises(Exception, match=r"no network|example\.org"):
            attempt()
    assert len(asked) >= 2


def test_nothing_is_fetched(
    train: Train, text: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(["data=offline"])
    assert next(iter(build_data(config["data"], config["tokenizer"], 0).source.documents())).text
    folder = train("callbacks=full")
    train("callbacks=full", "resume=true", "trainer.max_steps=3")
    own = ["data=text", f"data.path={text}"]
    evaluate.main([str(folder), *own])
    generate.main([str(folder), "--prompt", "def", "--max-tokens", "3"])
    report.main([str(folder), "--quick"])
    budget.main(["model=nano"])
    assert asked == []


def test_foreign_callbacks_and_optimizers_still_work(train: Train) -> None:
    train(
        "optimizer=adamw",
        "optimizer._target_=torch.optim.SGD",
        "~optimizer.betas",
        "~optimizer.eps",
        "~optimizer.fused",
        "+callbacks.x={_target_:lightning.pytorch.callbacks.LearningRateMonitor,logging_interval:step}",
    )
