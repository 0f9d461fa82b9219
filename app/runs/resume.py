"""Going on with a run: under which config, and from which checkpoint.

A resumed run keeps the config that it was saved with. Only where its text lies, where to stop, what
to run on, what to keep and how it is watched may be changed.
"""

from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from app.config.compose import Config
from app.config.overrides import key_of
from app.config.saved import CONFIG, OVERRIDES, get, put, read_config, read_list
from app.registry import UserError
from app.training.checkpoints import newest
from app.training.messages import say
from app.training.module import LanguageModel
from app.training.trainer import fixed_to_machine

PLACE = tuple(
    f"trainer.{key}"
    for key in ("accelerator", "strategy", "devices", "num_nodes", "ep_size", "accumulate")
)
LIMITS = tuple(
    f"trainer.{key}"
    for key in ("max_steps", "threads", "timeout_s", "skip_bad_steps", "detect_anomaly")
)
KEPT = tuple(
    f"trainer.{key}"
    for key in (
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "checkpoint_format",
        "export_weights",
    )
)
# the same text, which its fingerprint shows
TEXT = ("data.path", "data.sources.*.path", "data.cache_dir")
READING = ("data.num_workers", "data.max_epochs")
FREE = (*PLACE, *LIMITS, *KEPT, *TEXT, *READING, "callbacks", "logger", "run", "resume")


def saved_config(
    folder: Path, composed: Config, overrides: list[str]
) -> tuple[Config, list[str], list[str]]:
    """The config of a saved run with what may change of a new one, the overrides that lead to it,
    and messages.

    Raises:
        UserError: it is damaged, or none of ours.
    """
    saved = read_config(folder / CONFIG)
    known = read_list(folder / OVERRIDES) if (folder / OVERRIDES).exists() else []
    before = saved["trainer"].get("threads")
    # what an older version did not know
    saved["trainer"] = composed["trainer"] | saved["trainer"]
    # auto is anew
    new = [word for word in overrides if word not in known or key_of(word) in ("trainer", *PLACE)]
    config, kept = _merged(composed | saved, composed, new)
    messages = list(kept.values())
    threads = fixed_to_machine(config["trainer"])["threads"]
    if before not in (None, threads):
        messages.append(
            f"trainer.threads={threads}, not {before}: sums are rounded otherwise from here on"
        )
    return config, [override for override in overrides if override not in kept], messages


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest good checkpoint of a run; None if it has none yet.

    Raises:
        UserError: all that it has are damaged.
    """
    path, damaged = newest(folder / "checkpoints")
    if path is None and damaged:
        raise UserError(
            f"{damaged[0]}, and so are all others; restore one, or delete {folder}/checkpoints to "
            "start anew"
        )
    for line in damaged:
        say(f"resume: {line}: using the one before")
    return path


def require_same_model(module: LanguageModel, saved: dict[str, Any], path: Path) -> None:
    """Checks that the parameters of a checkpoint are those of the model.

    Raises:
        UserError: it is of another architecture.
    """
    mine = module.state_dict()
    for name in sorted(saved.keys() | mine.keys()):
        here, there = (tuple(d[name].shape) if name in d else "nothing" for d in (mine, saved))
        if here != there:
            raise UserError(f"{path} is of another model: {name} is {there} there and {here} here")


def _merged(saved: Config, composed: Config, overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """The saved config with what may change, and what is said of every override that may not."""
    merged = deepcopy(saved)
    kept = {}
    for override in overrides:
        key = key_of(override)
        for path in PLACE if key == "trainer" else [key]:
            new = get(composed, path)
            old = get(merged, path)
            if any(fnmatch(f"{path}.", f"{free}.*") for free in FREE):
                put(merged, path, new)
            elif new != old:
                kept[override] = f"keeping {path}={_short(old)} of the run, not {_short(new)}"
    return merged, kept


def _short(value: object) -> object:
    return value.get("name", "other values") if isinstance(value, dict) else value
