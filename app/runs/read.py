"""A finished or unfinished run, read back: its config, its text, its model as the newest checkpoint left it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.config.compose import composed, read_config
from app.data.module import TokenDataModule, build_data
from app.model.assemble import build_model
from app.model.transformer import Transformer
from app.registry import UserError
from app.training.checkpoints import newest, read_checkpoint

PREFIX = "model."  # of the transformer's parameters in a checkpoint


@dataclass(frozen=True)
class TrainedRun:
    """A model in evaluation mode and what it was trained on."""

    config: dict[str, Any]
    model: Transformer
    data: TokenDataModule
    checkpoint: Path

    def text(self, overrides: list[str]) -> TokenDataModule:
        """The text that overrides of train.py name, cut as the run's own; the run's own without overrides.

        Raises:
            UserError: the text cannot be read.
        """
        if not overrides:
            return self.data
        config = composed([f"data.seq_len={self.data.seq_len}", *overrides])
        data = build_data(config["data"], self.tokenizer_config(), self.config["seed"])
        data.prepare()
        return data

    def tokenizer_config(self) -> dict[str, Any]:
        """The config of a tokenizer that cuts other text as this run's does, also where it was learned."""
        learned = self.data.prepare().folder / "tokenizer.json"
        if self.data.tokenizer.learns:
            return {"name": "file", "path": str(learned), "separator": None}
        return dict(self.config["tokenizer"])


def read_run(folder: Path) -> TrainedRun:
    """Reads a run; writes nothing into its folder.

    Raises:
        UserError: the folder is none of a run, or holds no undamaged checkpoint.
    """
    saved = folder / "config.yaml"
    if not saved.exists():
        raise UserError(f"{folder}: is not the folder of a run: it has no config.yaml")
    path, damaged = newest(folder / "checkpoints")
    if path is None:
        raise UserError(f"{folder}: has no {'undamaged ' if damaged else ''}checkpoint; train it longer")
    config = read_config(saved)
    data = build_data(config["data"], config["tokenizer"], config["seed"])
    data.prepare()
    model = build_model(config, data.vocab_size)
    _read_weights(model, path)
    return TrainedRun(config, model.eval(), data, path)


def _read_weights(model: Transformer, path: Path) -> None:
    state = read_checkpoint(path)["state_dict"]
    try:
        model.load_state_dict({k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit the config beside it ({reason})") from error
