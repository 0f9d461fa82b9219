"""The stages of a library of skills, each a run of `train.py`:
one skill alone on a frozen base, then their mixture.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from app.config.compose import Config
from app.config.overrides import combined, last
from app.config.saved import CONFIG, OVERRIDES, RUNS, read_config
from app.model.skills import fingerprint, merged
from app.registry import UserError
from app.runs.folder import new_run, require_name
from app.runs.folder import taken as name_taken
from app.runs.library import existing, learned, names, path_of, read_skills, write_skill
from app.runs.read import PREFIX, located
from app.runs.text import ABOUT, ROWS, TOKENIZER, tokenizer_config
from app.training.checkpoints import read_checkpoint

# files of a base that hold for a model with its skills merged
KEPT = (CONFIG, OVERRIDES, ABOUT, TOKENIZER, ROWS)


def add_words(run: Path, name: str, typed: Sequence[str]) -> list[str]:
    """The overrides under which `train.py` learns a skill.

    Raises:
        UserError: the library has it already, the run is no dense one, or no text is named.
    """
    if path_of(run, name).exists():
        raise UserError(
            f"name={name}: {run} has this skill; python -m app.skill remove {run} {name}, or "
            "another name"
        )
    own = [f"run={run.name}-{name}", "experiment=_base/skill_add", f"experts.skills=[{name}]"]
    return _words(run, own, typed)


def compose_words(
    run: Path, skills: Sequence[str], mixture: str | None, typed: Sequence[str]
) -> list[str]:
    """The overrides under which `train.py` learns a mixture of skills.

    Raises:
        UserError: a skill is not there, the run is no dense one, or no text is named.
    """
    _dense_config(run)
    chosen = [name for name in skills if name] or names(run)
    if not chosen:
        raise UserError(
            f"{run}: has no skills yet; python -m app.skill add {run} name=NAME data=..."
        )
    files = ",".join(f"{name}:{quoted(str(existing(run, name)))}" for name in chosen)
    own = [
        f"run={run.name}+{'+'.join(chosen)}",
        "experiment=_base/skill_compose",
        f"experts.skills=[{','.join(chosen)}]",
    ]
    own += [
        f"init.files={{{files}}}",
        *([f"init.mixture={quoted(mixture)}"] if mixture else []),
    ]
    return _words(run, own, typed)


def keep(run: Path, name: str, words: Sequence[str]) -> Path:
    """Puts the skill that a stage has learned into the library."""
    write_skill(path_of(run, name), learned(RUNS / str(last(words, "run"))))
    return path_of(run, name)


def merge(run: Path, shares: Mapping[str, float], name: str) -> Path:
    """Make a run of the base with constant shares of its skills in the weights: a dense model
    without a library.

    It is at step 0: steps, tokens, optimizer and validation of the base belong to other weights.

    Raises:
        UserError: A skill is missing or of another base, a weight overflows, or the name is taken
            or no name.
    """
    require_name(name)
    _dense_config(run)
    folder, checkpoint = located(run)
    state = read_checkpoint(checkpoint)["state_dict"]
    target = RUNS / name
    if target.exists():
        raise name_taken(target)
    paths = {skill: str(existing(run, skill)) for skill in shares}
    skills = read_skills(paths, fingerprint(state))
    weights = merged(state, skills, shares)
    files = {name: (folder / name).read_bytes() for name in KEPT if (folder / name).exists()}
    new_run(
        target, files, {name: tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    )
    return target


def shares_of(words: Iterable[str]) -> dict[str, float]:
    """NAME=SHARE, as typed.

    Raises:
        UserError: one is something else, or there is none.
    """
    shares = {}
    for word in words:
        name, _, share = word.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = math.nan
        if not math.isfinite(shares[name]):
            raise UserError(f"{word}: must be NAME=SHARE with a finite number, such as french=0.5")
    if not shares:
        raise UserError("which skills? NAME=SHARE, such as french=0.5")
    return shares


def _dense_config(run: Path) -> Config:
    config = read_config(located(run)[0] / CONFIG)
    if config["experts"]["name"] != "dense":
        raise UserError(
            f"{run}: has experts={config['experts']['name']}; skills lie on a dense model, whose "
            "router is theirs: train one with experts=dense balance=none"
        )
    return config


def _words(run: Path, own: Sequence[str], typed: Sequence[str]) -> list[str]:
    """All overrides of a stage, which goes on if it was begun before."""
    if not any(word.startswith("data") for word in typed):
        raise UserError(
            "data: on which text? data=text data.path=FILE, or data.weights={wiki_fr: 1} of the "
            "default"
        )
    words = combined([*_base_words(run), *own], typed)
    return [
        *words,
        *(["resume=true"] if (RUNS / str(last(words, "run")) / CONFIG).exists() else []),
    ]


def _base_words(run: Path) -> list[str]:
    """What a run on this base has in common with it."""
    config = _dense_config(run)
    tokenizer = tokenizer_config(run, config)
    activation = dict(config["experts"].get("activation", {"name": "swiglu"}))
    words = [f"model.{key}={spelled(value)}" for key, value in config["model"].items()]
    words += [
        f"experts/activation={activation.pop('name')}",
        f"experts.hidden_dim={config['experts']['hidden_dim']}",
    ]
    words += [f"experts.activation.{key}={spelled(value)}" for key, value in activation.items()]
    words += [
        f"tokenizer={tokenizer.pop('name')}",
        *(f"tokenizer.{k}={spelled(v)}" for k, v in tokenizer.items()),
    ]
    return [*words, f"data.seq_len={config['data']['seq_len']}", f"init.base={quoted(str(run))}"]


def spelled(value: object) -> str:
    """A plain value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def quoted(word: str) -> str:
    """A word that Hydra takes as it is."""
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"
