"""A finished or unfinished run, read back: its config, its text, its model as a checkpoint left it.

Needs nothing but the folder of the run, unless its own text is asked for.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from app.config.compose import Config, composed, with_whole_sources
from app.config.overrides import key_of, last, path_quoted
from app.config.saved import CONFIG, read_config
from app.data.module import TokenDataModule, build_data
from app.data.sources import first_line
from app.model.assemble import build_model
from app.model.transformer import Transformer
from app.registry import UserError, knobs, unknown
from app.runs.resume import newest_checkpoint
from app.runs.text import RunText, read_text, tokenizer_config
from app.training.checkpoints import is_checkpoint, read_checkpoint, read_weight_file, steps

# of a run, without optimizer and config
WEIGHTS = "weights.safetensors"
ENDING = ".safetensors"
# of the transformer's parameters in a checkpoint
PREFIX = "model."


@dataclass(frozen=True)
class TrainedRun:
    """A model in evaluation mode and what it was trained on."""

    folder: Path
    config: Config
    model: Transformer
    text: RunText
    checkpoint: Path

    @property
    def seq_len(self) -> int:
        """Tokens of a row."""
        return int(self.config["data"]["seq_len"])

    def on(self, device: str) -> "TrainedRun":
        """The same with its model on a device.

        Raises:
            UserError: there is no such device.
        """
        try:
            self.model.to(torch.empty(0, device=device).device)
        # torch says each in its own way
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(
                f"--device {device}: cannot be used ({first_line(error)}); cpu can"
            ) from error
        return self

    def computing(self, dtype: str) -> AbstractContextManager[object]:
        """Products in this type inside; the weights and the routers' arithmetic stay float32."""
        device = self.model.embedding.weight.device.type
        return torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32")

    def data(self, overrides: list[str]) -> TokenDataModule:
        """The text that overrides of the group `data` name, cut as the run's own; the run's own
        without overrides.

        Raises:
            UserError: the text cannot be read, it is no longer that of the run, or an override is
                of something else.
        """
        other = any(names_other_text(override) for override in overrides)
        tokenizer = (
            tokenizer_config(self.folder, self.config) if other else self.config["tokenizer"]
        )
        data = build_data(with_data(self.config, overrides), tokenizer, self.config["seed"])
        data.prepare()
        if not other:
            require_same_text(self.folder, self.text, data)
        return data


def names_other_text(override: str) -> bool:
    """Whether it chooses text, and not only how text is cut."""
    return key_of(override).removeprefix("data.") not in knobs(TokenDataModule)


def read_run(path: Path, checkpoint: str | None = None) -> TrainedRun:
    """Reads a run, of its folder or of one of its checkpoints; writes nothing.

    Args:
        path: the folder, or a checkpoint.
        checkpoint: the name of one in the folder, such as `step_200`; None: the newest.

    Raises:
        UserError: it is none of a run, or holds no undamaged checkpoint.
    """
    folder, file = located(path, checkpoint)
    config = read_config(folder / CONFIG)
    text = read_text(folder, config)
    model = build_model(config, text.tokenizer.vocab_size)
    _read_weights(model, file)
    return TrainedRun(folder, config, model.eval(), text, file)


def weights_of(key: str, place: str) -> dict[str, Any]:
    """The state of a model, of a checkpoint or the newest one of a run; `key` is where the place
    stands in the config.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(place)
    if not path.exists():
        raise UserError(
            f"{key}={path}: no such file or folder; give a checkpoint, or the folder of a run"
        )
    if path.suffix == ENDING:
        return {
            f"{PREFIX}{name}": tensor
            for name, tensor in read_weight_file(path, f"{key}=")[0].items()
        }
    state: dict[str, object] = read_checkpoint(path if is_checkpoint(path) else located(path)[1])[
        "state_dict"
    ]
    return state


def located(path: Path, name: str | None = None) -> tuple[Path, Path]:
    """The folder of a run and a checkpoint in it: where `path` is the folder, the one of this name
    or the newest.

    Raises:
        UserError: it is neither the folder of a run nor a checkpoint in one.
    """
    folder = path.parent.parent if is_checkpoint(path) or not path.is_dir() else path
    if not (folder / CONFIG).exists():
        what = (
            "the folder of a run"
            if path.is_dir()
            else ("a checkpoint of a run")
            if path.exists()
            else "there"
        )
        raise UserError(
            f"{path}: is not {what}: it has no {CONFIG}; give runs/NAME or "
            "runs/NAME/checkpoints/STEP.ckpt"
        )
    if is_checkpoint(path):
        return folder, path
    if name is not None:
        return folder, _named(folder, name)
    newest = newest_checkpoint(folder)
    if newest is None:
        raise UserError(f"{folder}: has no checkpoint; train it longer")
    return folder, newest


def _named(folder: Path, name: str) -> Path:
    known = {path.stem: path for _, path in steps(folder / "checkpoints")}
    stem = name.removesuffix(".ckpt")
    if stem not in known:
        raise UserError(unknown(f"--checkpoint {name}", stem, known))
    return known[stem]


def require_same_text(folder: Path, text: RunText, data: TokenDataModule) -> None:
    """Checks that data is the text of a run, and cut as it was.

    Raises:
        UserError: it is another one.
    """
    if data.corpus_fingerprint != text.fingerprint:
        raise UserError(
            f"{folder} was trained on other text than the config names now: its files have "
            "changed; restore them, name their new place with data.path=..., or start anew with "
            "another run=NAME"
        )
    if data.tokenizer.to_json() != text.tokenizer.to_json():
        raise UserError(
            f"{folder}: the tokenizer learned from its text is another one now; install what it "
            "ran with"
        )


def with_data(config: Config, overrides: list[str]) -> Config:
    """The group `data` of a saved config with overrides applied.

    Raises:
        UserError: an override is of another group, or names a key that does not exist.
    """
    overrides = list(map(path_quoted, overrides))
    for override in overrides:
        if key_of(override).partition(".")[0] != "data":
            raise UserError(
                f"{override}: is fixed by the run; here only data=... and data.KEY=... can be set"
            )
    chosen = last(overrides, "data")
    data = dict(config["data"])
    if chosen is not None:
        common = {name: data[name] for name in knobs(TokenDataModule) if name in data}
        data = composed([f"data={chosen}"])["data"] | common
    for override in (o for o in overrides if key_of(o) != "data"):
        key, *inner = key_of(override).split(".")[1:]
        if key not in data or inner:
            raise UserError(unknown(override, key, data))
        data[key] = _value(override)
    return with_whole_sources(data)


def _value(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


def _read_weights(model: Transformer, path: Path) -> None:
    state = read_checkpoint(path)["state_dict"]
    try:
        model.load_state_dict(
            {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit the config beside it ({reason})") from error
