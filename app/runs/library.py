"""The library of a run: its skills in files, RUN/skills/NAME.safetensors.

A file holds the factors of one skill and, in its header, the fingerprint of the base that it was
learned on and what it fits: it can be copied into the library of whoever has the same base.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.table import Table

from app.config.compose import Config
from app.config.saved import CONFIG, read_config
from app.data.tokenizers import Tokenizer
from app.model.assemble import build_model
from app.model.skills import (
    Skill,
    SkillsInit,
    State,
    base_of,
    fingerprint,
    lay_beneath,
    put,
    taken,
    widen,
)
from app.model.transformer import Transformer
from app.registry import UserError, unknown
from app.runs.read import located, weights_of
from app.runs.text import TOKENIZER, read_text, read_tokenizer
from app.training.checkpoints import read_checkpoint, read_weight_file, write_weight_file

FOLDER = "skills"
ENDING = ".safetensors"
NAME = r"[A-Za-z_]\w{0,59}"
# what every header holds, and in which form
HEADER = {
    "name": NAME,
    "base": "[0-9a-f]{32}",
    "linears": r"\w+",
    "rank": r"[1-9]\d{0,8}",
    "scale": r"\d{1,9}(\.\d{1,20})?(e-?\d{1,2})?",
}


def path_of(run: Path, name: str) -> Path:
    """Where a skill of a library lies.

    Raises:
        UserError: this is no name.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(f"name={name}: must be letters, digits and _, and begin with a letter")
    return run / FOLDER / f"{name}{ENDING}"


def names(run: Path) -> list[str]:
    """Of the skills of a library, sorted."""
    return sorted(path.stem for path in (run / FOLDER).glob(f"*{ENDING}"))


def existing(run: Path, name: str) -> Path:
    """The file of a skill.

    Raises:
        UserError: there is none.
    """
    if name not in names(run):
        raise UserError(unknown(f"{run}: skill {name}", name, names(run)))
    return path_of(run, name)


def write_skill(path: Path, skill: Skill) -> None:
    """Writes a file, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    write_weight_file(path, skill.factors, skill.about)


def learned(folder: Path) -> Skill:
    """The skill that a run has learned.

    Raises:
        UserError: it has none, or several.
    """
    saved = read_checkpoint(located(folder)[1])
    config = read_config(folder / CONFIG)
    own = config["experts"].get("skills", [])
    if len(own) != 1:
        raise UserError(
            f"{folder}: has learned {len(own)} skills; a run that is one has one alone (app.skill "
            "add)"
        )
    text = {
        "domains": read_text(folder, config).domains,
        "steps": saved["global_step"],
        "tokens": saved["tokens_seen"],
    }
    about = {key: str(config["experts"][key]) for key in ("linears", "rank", "scale")}
    about |= {"name": own[0], "base": fingerprint(saved["state_dict"]), "learned": json.dumps(text)}
    return Skill(taken(saved["state_dict"], 0), about)


def read_skill(path: Path) -> Skill:
    """A skill out of its file, or of the run that has learned it.

    Raises:
        UserError: there is no such file, it is damaged, or none of ours.
    """
    if path.is_dir():
        return learned(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; python -m app.skill list RUN shows the skills of a run"
        )
    factors, about = read_weight_file(path)
    for key, form in HEADER.items():
        if not re.fullmatch(form, about.get(key, "")):
            raise UserError(f"{path}: is no skill of ours: its header has {key}={about.get(key)!r}")
    learned_on(path, about)
    return Skill(factors, about)


def learned_on(path: Path, about: Mapping[str, str]) -> tuple[list[str], int]:
    """Return the domains that a skill was learned on, and the number of tokens, out of the header
    of its file.

    Raises:
        UserError: The header is damaged.
    """
    try:
        text = json.loads(about.get("learned", "{}"))
        domains = text.get("domains", [])
        tokens = text.get("tokens", 0)
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(
            f"{path}: is no skill of ours: its header has learned={about['learned'][:80]!r}"
        ) from error
    if (
        not isinstance(domains, list)
        or not all(isinstance(name, str) for name in domains)
        or type(tokens) is not int
    ):
        raise UserError(
            f"{path}: is no skill of ours: its header has learned={about['learned'][:80]!r}"
        )
    return domains, tokens


def read_skills(files: Mapping[str, str], base: str) -> dict[str, Skill]:
    """Skills by name, all of them of the base with this fingerprint.

    Raises:
        UserError: one cannot be read, or belongs to another base.
    """
    skills = {name: read_skill(Path(path)) for name, path in files.items()}
    for name, skill in skills.items():
        if skill.about["base"] != base:
            raise UserError(
                f"{files[name]}: was learned on another base ({skill.about['base'][:8]}, not "
                f"{base[:8]}); a skill belongs to the weights that it was learned on"
            )
    return skills


def table(run: Path) -> Table:
    """The skills of a library, for the terminal.

    Raises:
        UserError: this is no run, or a file is damaged.
    """
    own = fingerprint(weights_of("RUN", str(run)))
    shown = Table(
        "skill",
        "linear layers",
        "rank",
        "scale",
        "parameters",
        "learned on",
        "tokens",
        title=f"{run}",
    )
    for name in names(run):
        skill = read_skill(path_of(run, name))
        about, (domains, tokens) = skill.about, learned_on(path_of(run, name), skill.about)
        number = sum(factor.numel() for factor in skill.factors.values())
        text = ", ".join(domains) + ("" if about["base"] == own else " (of another base)")
        numbers = (f"{number:,}", text, f"{tokens:,}")
        shown.add_row(name, about["linears"], about["rank"], about["scale"], *numbers)
    return shown


def load_skills(model: Transformer, init: SkillsInit) -> None:
    """Load the base below the skills of a model, ready skills, and a mixture of some of them.

    Raises:
        UserError: A run or a file is not there, or does not fit.
    """
    _load(model, init, weights_of("init.base", str(init.base)))


def _load(model: Transformer, init: SkillsInit, base: State) -> None:
    lay_beneath(model, base)
    if init.files is not None:
        put(model, read_skills(init.files, fingerprint(base)))
    if init.mixture is not None:
        known = read_config(Path(init.mixture) / CONFIG)["experts"].get("skills", [])
        widen(model, weights_of("init.mixture", init.mixture), known)


def check_skills(config: Config, init: SkillsInit) -> None:
    """Try to load base, skills and mixture without memory, before the text is read.

    Raises:
        UserError: It would fail.
    """
    base = weights_of("init.base", str(init.base))
    with torch.device("meta"):
        model = build_model(config, len(base_of(base).get("embedding.weight", [0])))
    _load(model, init, base)


def require_same_tokenizer(key: str, folder: Path, tokenizer: Tokenizer) -> None:
    """Checks that the text is cut as that of the run in a folder was; `key` is where it stands in
    the config.

    Raises:
        UserError: it is not.
    """
    own = read_tokenizer(folder, read_config(folder / CONFIG))
    if own.to_json() != tokenizer.to_json():
        raise UserError(
            f"{key}={folder}: cuts text by another tokenizer; set tokenizer=file "
            f"tokenizer.path={folder / TOKENIZER}, or tokenizer=bytes if it has none"
        )
