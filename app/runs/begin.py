"""The weights that a new run begins with: those of another run, of a dense model, of a base below
skills, or drawn.

Nothing is trained at step 0, so a checkpoint of that step, as an import leaves it, is weights and
no more.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch

from app.config.build import build_init, build_module, build_skills, build_upcycle
from app.config.compose import Config
from app.config.overrides import key_of
from app.config.saved import CONFIG, ROUTER_PARTS, folder_of_start, get, put, read_config
from app.data.module import TokenDataModule
from app.data.tokenizers import Tokenizer
from app.model.assemble import build_model
from app.model.transformer import Transformer
from app.model.upcycle import State, upcycle
from app.registry import UserError
from app.runs.library import begin_skills, check_skills, require_same_tokenizer
from app.runs.read import PREFIX, WEIGHTS, weights_of
from app.runs.resume import newest_checkpoint, require_same_model
from app.runs.text import tokenizer_config
from app.training.checkpoints import read_checkpoint, step_of, write_weight_file
from app.training.module import LanguageModel
from app.training.unfilled import Given

# groups that weights depend on
MODEL_GROUPS = ("model", "experts", "router", "balance", "tokenizer")


def _inherited_paths(config: Config, saved: Config, overrides: list[str]) -> list[str]:
    """Return the config paths whose values a run takes over from the run that it starts from."""
    keys = [key_of(override) for override in overrides]
    paths = []
    if "model" not in keys:
        paths.append("model")
    if get(config, "experts.name") == get(saved, "experts.name"):
        paths.append("experts")
    if config["balance"].keys() == saved["balance"].keys():
        paths.append("balance")
    if "router" not in keys:
        for part in ROUTER_PARTS:
            if get(config, f"router.{part}.name") == get(saved, f"router.{part}.name"):
                paths.append(f"router.{part}")
        if not any("router.layers" in override for override in overrides):
            paths.append("router.layers")
    return paths


def with_model_of_start(config: Config, overrides: list[str]) -> Config:
    """Return the config with model, router, experts, balance and tokenizer of the run in
    `init.from`.

    An option of these groups that differs from the source run keeps its composed values, and so
    does every key in `overrides`. With an `experiment`, or if the source has no config file, the
    config is returned unchanged.

    Args:
        config: Composed config.
        overrides: Overrides that it was composed with.

    Raises:
        UserError: The source run's config is damaged.
    """
    place = build_init(config).place
    folder = folder_of_start(place)
    keys = [key_of(override) for override in overrides]
    if folder is None or "experiment" in keys:
        return config
    saved = read_config(folder / CONFIG)
    started = deepcopy(config)
    for path in _inherited_paths(config, saved, overrides):
        put(started, path, deepcopy(get(saved, path)))
    if not any(key.split(".")[0] == "tokenizer" for key in keys):
        started["tokenizer"] = tokenizer_config(folder, saved)
    if "allow_non_causal" not in keys:
        started["allow_non_causal"] = saved["allow_non_causal"]
    for key in (key for key in keys if "." in key and key.split(".")[0] in MODEL_GROUPS):
        # the option of a router part, not a single value
        if not isinstance(get(config, key), dict):
            put(started, key, get(config, key))
    return started


def goes_on_from(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from; None if it is at its beginning."""
    newest = newest_checkpoint(folder)
    return newest if newest is not None and step_of(newest) else None


def check_begin(config: Config) -> None:
    """Whether a new run can begin as it is told to, before its text is read; without memory.

    Raises:
        UserError: it cannot.
    """
    check_skills(config)
    start = build_init(config)
    others = {
        "skills.base": build_skills(config).base,
        "upcycle.checkpoint": build_upcycle(config).checkpoint,
    }
    for key, place in others.items():
        if start.place is not None and place is not None:
            raise UserError(
                f"init.from={start.place}: there is {key}={place}, too; a run begins "
                "from one of them"
            )
    dense = _shapes("upcycle.checkpoint", build_upcycle(config).checkpoint)
    if dense:
        _try_upcycling(config, dense, len(dense.get(f"{PREFIX}embedding.weight", [0])))
    begin = _shapes("init.from", start.place)
    if begin:
        _require_same_shapes(
            config, begin, len(begin.get(f"{PREFIX}embedding.weight", [0])), str(start.place)
        )


def check_begin_with_text(config: Config, tokenizer: Tokenizer) -> None:
    """The same once the tokenizer is known.

    Raises:
        UserError: it cannot.
    """
    for key, place in (
        ("skills.base", build_skills(config).base),
        ("init.from", build_init(config).place),
    ):
        if place is not None and Path(place).is_dir():
            require_same_tokenizer(key, Path(place), tokenizer)
    dense = _shapes("upcycle.checkpoint", build_upcycle(config).checkpoint)
    if dense:
        _try_upcycling(config, dense, tokenizer.vocab_size)


def begun(
    config: Config, data: TokenDataModule, folder: Path, checkpoint: str | None, split: bool
) -> LanguageModel:
    """The module of a run, with the weights that it begins with unless it goes on from a
    checkpoint.

    A model that is to be `split` over ranks has no memory for its matrices yet, except where they
    are made of others'.
    """
    change, state = (None, {}) if checkpoint else (_change(config), _taken(config, folder))
    whole = not split or change is not None
    module = build_module(config, data.vocab_size, data.domains, data.micro_batch_size, whole)
    if change is not None:
        change(module.model)
    _load(module.model, state)
    module.draws |= {
        name: Given(state[f"{PREFIX}{name}"]) for name in module.draws if f"{PREFIX}{name}" in state
    }
    if checkpoint:
        require_same_model(
            module,
            read_checkpoint(Path(checkpoint), only_shapes=True)["state_dict"],
            Path(checkpoint),
        )
    return module


def _taken(config: Config, folder: Path) -> State:
    """The weights that a run begins with as they are: those of another run or of an import."""
    imported = newest_checkpoint(folder)
    place = build_init(config).place
    if imported is not None:
        return weights_of("checkpoints", str(imported))
    return {} if place is None else weights_of("init.from", place)


def _change(config: Config) -> Callable[[Transformer], None] | None:
    """What makes the weights that a run begins with of another model's."""
    chosen = build_upcycle(config)
    skills = build_skills(config)
    if skills.base is not None:
        return partial(begin_skills, start=skills)
    if chosen.checkpoint is None:
        return None
    dense = weights_of("upcycle.checkpoint", chosen.checkpoint)
    return partial(
        upcycle, dense=dense, how=chosen.how, drop_share=chosen.drop_share, seed=config["seed"]
    )


def write_weights(folder: Path, state: State) -> None:
    """The weights of a run alone, under the names of the model, as `init.from` reads them."""
    plain = {
        name.removeprefix(PREFIX): tensor.clone()
        for name, tensor in state.items()
        if name.startswith(PREFIX)
    }
    write_weight_file(folder / WEIGHTS, plain)


def _load(model: Transformer, state: State) -> None:
    """What balances begins anew, but for what steers the choice:
    a model without its biases is another one.
    """
    model.load_state_dict(
        {name.removeprefix(PREFIX): weights for name, weights in state.items()}, strict=False
    )


def _shapes(key: str, place: str | None) -> State:
    """Of the weights at a place, without memory; empty where there is no place."""
    state = {} if place is None else weights_of(key, place)
    return {name: weights.to("meta") for name, weights in state.items()}


def _try_upcycling(config: Config, dense: State, vocab_size: int) -> None:
    chosen = build_upcycle(config)
    with torch.device("meta"):
        model = build_model(config, vocab_size)
        upcycle(model, dense, chosen.how, chosen.drop_share, config["seed"])


def _require_same_shapes(config: Config, begin: State, vocab_size: int, place: str) -> None:
    with torch.device("meta"):
        mine = dict(build_model(config, vocab_size).named_parameters())
    theirs = {name.removeprefix(PREFIX): weights for name, weights in begin.items()}
    different = []
    for name in sorted(
        mine.keys() | (theirs.keys() - {n for n in theirs if n.startswith("balancer.")})
    ):
        here, there = (tuple(d[name].shape) if name in d else "nothing" for d in (mine, theirs))
        if here != there and not (name == "head.weight" and config["model"]["tie_embeddings"]):
            different.append(f"{name} has shape {there} in the weights and {here} in the config")
    if different:
        keys = _different_keys(config)
        if keys:
            problem = (
                f"the weights are of another model. Set {', '.join(keys)} as in that run, "
                "or omit these overrides"
            )
        else:
            problem = f"the weights are of another model: {'; '.join(different[:5])}"
        raise UserError(f"init.from={place}: {problem}")


def _different_keys(config: Config) -> list[str]:
    """Return KEY=VALUE of the source run for each key of model,
    router and experts that differs from this config.
    """
    folder = folder_of_start(build_init(config).place)
    if folder is None:
        return []
    saved = read_config(folder / CONFIG)
    return [
        f"{key}={value}"
        for group in ("model", "experts", "router")
        for key, value in _values(saved[group], f"{group}.")
        if get(config, key) != value
    ]


def _values(config: Config, before: str) -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a config with its value."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _values(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
