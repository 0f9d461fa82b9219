"""The weights of a new run: new ones, those of another run, or made of a dense model's.

Nothing is trained at step 0, so a checkpoint of that step, as an import leaves it, is weights and
no more.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from app.config.build import build_module
from app.config.compose import Config
from app.config.init import RunInit, ScratchInit, build_init
from app.config.saved import CONFIG, folder_of_weights, get, read_config
from app.data.module import TokenDataModule
from app.data.tokenizers import Tokenizer
from app.model.assemble import build_model
from app.model.skills import SkillsInit
from app.model.transformer import Transformer
from app.model.upcycle import State, UpcycleInit, upcycle
from app.registry import UserError
from app.runs.library import check_skills, load_skills, require_same_tokenizer
from app.runs.read import PREFIX, WEIGHTS, weights_of
from app.runs.resume import newest_checkpoint, require_same_model
from app.training.checkpoints import read_checkpoint, step_of, write_weight_file
from app.training.module import LanguageModel
from app.training.unfilled import Given

Transform = Callable[[Transformer], None]


class NewWeights:
    """`init=scratch`: the model draws its weights. The base of all other sources."""

    def __init__(self, config: Config, init: object) -> None:
        self.config = config
        self.init = init

    def check(self) -> None:
        """Check without memory, and before the text is read, that the weights fit the model.

        Raises:
            UserError: They do not.
        """

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Check that the weights fit the tokenizer.

        Raises:
            UserError: They do not.
        """

    def state(self) -> State:
        """Return weights that the model takes as they are."""
        return {}

    def transform(self) -> Transform | None:
        """Return the function that makes the model's weights of another model's."""
        return None


class WeightsOfRun(NewWeights):
    """`init=run`."""

    init: RunInit

    def check(self) -> None:
        state = _shapes("init.checkpoint", str(self.init.checkpoint))
        _require_same_shapes(self.config, state, _vocab_size(state), str(self.init.checkpoint))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        place = Path(str(self.init.checkpoint))
        if place.is_dir():
            require_same_tokenizer("init.checkpoint", place, tokenizer)

    def state(self) -> State:
        return weights_of("init.checkpoint", str(self.init.checkpoint))


class WeightsOfDenseModel(NewWeights):
    """`init=upcycle`."""

    init: UpcycleInit

    def check(self) -> None:
        dense = _shapes("init.checkpoint", str(self.init.checkpoint))
        self._try(dense, _vocab_size(dense))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        self._try(_shapes("init.checkpoint", str(self.init.checkpoint)), tokenizer.vocab_size)

    def transform(self) -> Transform:
        dense = weights_of("init.checkpoint", str(self.init.checkpoint))
        return partial(
            upcycle,
            dense=dense,
            how=self.init.how,
            drop_share=self.init.drop_share,
            seed=self.config["seed"],
        )

    def _try(self, dense: State, vocab_size: int) -> None:
        with torch.device("meta"):
            model = build_model(self.config, vocab_size)
            upcycle(model, dense, self.init.how, self.init.drop_share, self.config["seed"])


class WeightsOfSkills(NewWeights):
    """`init=skills`."""

    init: SkillsInit

    def check(self) -> None:
        check_skills(self.config, self.init)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        base = Path(str(self.init.base))
        if base.is_dir():
            require_same_tokenizer("init.base", base, tokenizer)

    def transform(self) -> Transform:
        return partial(load_skills, init=self.init)


SOURCES: dict[type, type[NewWeights]] = {
    ScratchInit: NewWeights,
    RunInit: WeightsOfRun,
    UpcycleInit: WeightsOfDenseModel,
    SkillsInit: WeightsOfSkills,
}


def weights_source(config: Config) -> NewWeights:
    """Return the source of a new run's weights; nothing is read yet.

    Raises:
        UserError: The config group `init` is wrong.
    """
    init = build_init(config)
    return SOURCES[type(init)](config, init)


def checkpoint_to_resume(folder: Path) -> Path | None:
    """Return the checkpoint from which a run resumes; None if it has taken no step."""
    newest = newest_checkpoint(folder)
    return newest if newest is not None and step_of(newest) else None


def initialized_module(
    config: Config, data: TokenDataModule, folder: Path, checkpoint: str | None, split: bool
) -> LanguageModel:
    """Return the module of a run with its initial weights, unless it resumes from a checkpoint.

    Args:
        config: Config of the run.
        data: Its text.
        folder: Its folder.
        checkpoint: The checkpoint from which it resumes.
        split: Whether the model will be split over ranks. Its matrices have no memory before that,
            unless they are made of another model's.
    """
    transform: Transform | None = None
    state: State = {}
    if checkpoint is None:
        source = weights_source(config)
        transform = source.transform()
        imported = newest_checkpoint(folder)
        # An import has left its weights as a checkpoint of step 0.
        state = weights_of("checkpoints", str(imported)) if imported else source.state()
    whole = not split or transform is not None
    module = build_module(config, data.vocab_size, data.domains, data.micro_batch_size, whole)
    if transform is not None:
        transform(module.model)
    plain = {name.removeprefix(PREFIX): weights for name, weights in state.items()}
    # Balance terms start anew, except for the biases that steer the choice: a model without them is
    # another one. So not all names are in both.
    module.model.load_state_dict(plain, strict=False)
    for name in module.draws:
        if name in plain:
            module.draws[name] = Given(plain[name])
    if checkpoint:
        saved = read_checkpoint(Path(checkpoint), only_shapes=True)["state_dict"]
        require_same_model(module, saved, Path(checkpoint))
    return module


def write_weights(folder: Path, state: State) -> None:
    """Write the weights of a run alone, under the names of the model, as `init=run` reads them."""
    plain = {
        name.removeprefix(PREFIX): tensor.clone()
        for name, tensor in state.items()
        if name.startswith(PREFIX)
    }
    write_weight_file(folder / WEIGHTS, plain)


def _shapes(key: str, place: str) -> State:
    """Return the weights at a place, without memory."""
    return {name: weights.to("meta") for name, weights in weights_of(key, place).items()}


def _vocab_size(state: State) -> int:
    """Return the number of tokens that a model in its state knows."""
    return len(state.get(f"{PREFIX}embedding.weight", [0]))


def _require_same_shapes(config: Config, state: State, vocab_size: int, place: str) -> None:
    with torch.device("meta"):
        own = dict(build_model(config, vocab_size).named_parameters())
    given = {name.removeprefix(PREFIX): weights for name, weights in state.items()}
    different = []
    for name in sorted(own.keys() | given.keys()):
        is_of_balance = name.startswith("balancer.") and name not in own
        is_tied = name == "head.weight" and config["model"]["tie_embeddings"]
        own_shape = tuple(own[name].shape) if name in own else "nothing"
        given_shape = tuple(given[name].shape) if name in given else "nothing"
        if own_shape != given_shape and not is_of_balance and not is_tied:
            different.append(
                f"{name} has shape {given_shape} in the weights and {own_shape} in the config"
            )
    if not different:
        return
    problem = f"the weights are of another model: {'; '.join(different[:5])}"
    keys = _different_keys(config, place)
    if keys:
        problem = (
            f"the weights are of another model. Set {', '.join(keys)} as in that run, or omit "
            "these overrides"
        )
    raise UserError(f"init.checkpoint={place}: {problem}")


def _different_keys(config: Config, place: str) -> list[str]:
    """Return KEY=VALUE of the source run for each key of model, router and experts that differs."""
    folder = folder_of_weights(place)
    if folder is None:
        return []
    saved = read_config(folder / CONFIG)
    different = []
    for group in ("model", "experts", "router"):
        for key, value in _values(saved[group], f"{group}."):
            if get(config, key) != value:
                different.append(f"{key}={value}")
    return different


def _values(config: Config, before: str) -> Iterator[tuple[str, object]]:
    """Yield every dotted key of a config with its value."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _values(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
