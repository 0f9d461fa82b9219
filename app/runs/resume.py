"""Going on with a run: under which config, and from which checkpoint.

A resumed run keeps the config that it was saved with. Only where to stop and on what to run may be changed.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from app.config.compose import as_dict
from app.registry import UserError
from app.training.checkpoints import newest, read_checkpoint
from app.training.messages import say
from app.training.module import LanguageModel
from app.training.trainer import fixed_to_machine

PLACE = tuple(f"trainer.{key}" for key in ("accelerator", "strategy", "devices", "num_nodes", "ep_size"))
LIMITS = ("trainer.max_steps", "trainer.threads", "trainer.timeout_s", "trainer.skip_bad_steps")
FREE = (*PLACE, *LIMITS, "callbacks", "run", "resume")


def saved_config(path: Path, composed: DictConfig, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The config of a saved run with what may change of a new one, and messages about what may not."""
    saved: Any = OmegaConf.load(path)
    before = saved["trainer"]["threads"]
    config, messages = _merged(saved, composed, overrides)
    threads = fixed_to_machine(config["trainer"])["threads"]
    if before not in (None, threads):
        messages.append(f"trainer.threads={threads}, not {before}: sums are rounded otherwise from here on")
    return config, messages


def resumable_checkpoint(module: LanguageModel, config: dict[str, Any], folder: Path) -> Path | None:
    """The newest checkpoint of a run, if its parameters are those of the model and its text is this one.

    Raises:
        UserError: it is of another architecture, or of other text.
    """
    path, damaged = newest(folder / "checkpoints")
    for line in damaged:
        say(f"resume: {line}")
    if path is None:
        if config["resume"]:
            say(f"resume: {folder} has no checkpoint: starting afresh")
        return None
    checkpoint = read_checkpoint(path)
    if checkpoint.get("corpus", module.corpus) != module.corpus:
        raise UserError(
            f"{path} was trained on other text: the files of data={config['data']['source']} have changed; restore "
            "them, or start anew with another run=NAME"
        )
    saved, mine = checkpoint["state_dict"], module.state_dict()
    for name in sorted(saved.keys() | mine.keys()):
        here, there = (tuple(d[name].shape) if name in d else "nothing" for d in (mine, saved))
        if here != there:
            raise UserError(f"{path} is of another model: {name} is {there} there and {here} here")
    return path


def _merged(saved: Any, composed: DictConfig, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The saved config with what may change, and a message for every override that may not."""
    messages = []
    saved["trainer"] = OmegaConf.merge(composed["trainer"], saved["trainer"])  # what an older version did not know
    for key in (override.lstrip("+~").partition("=")[0].replace("/", ".") for override in overrides):
        for path in PLACE if key == "trainer" else [key]:
            asked, kept = OmegaConf.select(composed, path), OmegaConf.select(saved, path)
            if path.startswith(FREE):
                OmegaConf.update(saved, path, asked)
            elif asked != kept:
                messages.append(f"keeping {path}={_short(kept)} of the run, not {_short(asked)}")
    return as_dict(saved), messages


def _short(value: Any) -> Any:
    return value.get("name", "other values") if isinstance(value, DictConfig) else value
