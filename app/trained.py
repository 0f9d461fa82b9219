"""A finished or unfinished run, read back: its config, its text, its model as the newest checkpoint left it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from app.assemble import build_model
from app.checkpoints import newest, read
from app.data import build_data
from app.data.module import TokenDataModule
from app.registry import UserError
from app.transformer import Transformer

PREFIX = "model."  # of the transformer's parameters in a checkpoint


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode and what it was trained on."""

    config: dict[str, Any]
    model: Transformer
    data: TokenDataModule
    checkpoint: Path

    def tokenizer_config(self) -> dict[str, Any]:
        """The config of a tokenizer that cuts other text as this run's does, also where it was learned."""
        learned = self.data.prepare().folder / "tokenizer.json"
        if self.data.tokenizer.learns:
            return {"name": "file", "path": str(learned), "separator": None}
        return dict(self.config["tokenizer"])


def load_run(folder: Path) -> Trained:
    """Reads a run; writes nothing into its folder.

    Raises:
        UserError: the folder is none of a run, or holds no whole checkpoint.
    """
    saved = folder / "config.yaml"
    if not saved.exists():
        raise UserError(f"{folder}: is not the folder of a run: it has no config.yaml")
    path, damaged = newest(folder / "checkpoints")
    if path is None:
        raise UserError(f"{folder}: has no {'whole ' if damaged else ''}checkpoint; train it longer")
    config: Any = OmegaConf.to_container(OmegaConf.load(saved), resolve=True)
    data = build_data(config["data"], config["tokenizer"], config["seed"])
    data.prepare()
    model = build_model(config, data.vocab_size)
    state = read(path)["state_dict"]
    try:
        model.load_state_dict({k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit the config beside it ({reason})") from error
    return Trained(config, model.eval(), data, path)
