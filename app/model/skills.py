"""Low-rank skills on a frozen dense model: what of it learns, and what a skill is when it is taken
out of a model.

A skill belongs to its base, which is known by the fingerprint of its weights.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from app.model.transformer import Transformer
from app.registry import UserError, require
from experts.mixture import Mixture

# in the names of a skill's parameters
FACTOR = ".skills_"
# in those of what chooses among the skills
OTHERS = (".router.", "shared_score.", "balancer.")
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SkillsInit:
    """`init=skills`: a frozen dense model, and low-rank skills on it.

    Raises:
        ValueError: No base is named, or skills are to learn on and there are none.
    """

    base: str | None
    files: dict[str, str] | None
    mixture: str | None
    learn: bool | None

    def __post_init__(self) -> None:
        has_base = self.base is not None
        require("base", self.base, has_base, "must be the folder of a run of a dense model")
        has_files = not self.learn or self.files is not None
        require("learn", self.learn, has_files, "needs init.files; new ones learn")

    def freeze_parameters(self, model: Transformer) -> None:
        """Freeze the dense model, and its skills if they are ready; the routers learn."""
        are_ready = self.files is not None and not self.learn
        base = base_of(dict(model.named_parameters()))
        for name, parameter in model.named_parameters():
            if name in base or (are_ready and FACTOR in name):
                parameter.requires_grad_(False)


class Skill(NamedTuple):
    """One skill by itself."""

    # by the names that a library has them under, without its axis of skills
    factors: State
    # what it fits: `base`, `rank`, `scale`, `linears`; and what it was trained on
    about: dict[str, str]


def names_of(model: Transformer) -> list[str]:
    """Return the names of a model's skills; none where its layout has no skills."""
    for module in model.modules():
        if isinstance(module, Mixture):
            return list(module.skills)
    return []


def library(model: Transformer) -> Mixture:
    """Return the layout of a model that has skills.

    Raises:
        UserError: It has none.
    """
    for module in model.modules():
        if isinstance(module, Mixture) and module.skills:
            return module
    raise UserError("this model has no skills; set experts=lora_skills")


def base_of(state: State) -> dict[str, Tensor]:
    """Return the weights of the dense model in its state, or in that of a model with skills.

    The prefix `model.` of a checkpoint is removed.
    """
    base = {}
    for key, weights in state.items():
        name = key.removeprefix("model.")
        is_of_skills = FACTOR in name or any(other in name for other in OTHERS)
        if not is_of_skills:
            base[name] = weights
    return base


def fingerprint(state: State) -> str:
    """Of the dense model in a state: the same for every model whose skills were learned on it."""
    digest = hashlib.sha256()
    for name, weights in sorted(base_of(state).items()):
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def lay_beneath(model: Transformer, dense: State) -> None:
    """Overwrite the dense model below the skills.

    Raises:
        UserError: The model has no skills, or the dense one is of other sizes.
    """
    library(model)
    own = base_of(model.state_dict())
    given = base_of(dense)
    for name in sorted(own.keys() | given.keys()):
        own_shape = tuple(own[name].shape) if name in own else "nothing"
        given_shape = tuple(given[name].shape) if name in given else "nothing"
        if own_shape != given_shape:
            raise UserError(
                f"init.base: is no dense model of these sizes: {name} is {given_shape} there and "
                f"{own_shape} here"
            )
        own[name].copy_(given[name])


@torch.no_grad()
def put(model: Transformer, skills: Mapping[str, Skill]) -> None:
    """Overwrites the skills of a model, all of them.

    Raises:
        UserError: a skill is of another kind, or one is missing or too much.
    """
    layout = library(model)
    state = model.state_dict()
    if {*skills} != {*layout.skills}:
        raise UserError(
            f"init.files={[*skills]}: must name a file for each of "
            f"experts.skills={[*layout.skills]}"
        )
    wanted = {name: factor.shape[1:] for name, factor in state.items() if FACTOR in name}
    for place, skill in enumerate(skills[name] for name in layout.skills):
        for key, value in layout.kind().items():
            if skill.about[key] != value:
                raise UserError(
                    f"experts.{key}={value}: {layout.skills[place]} was learned with "
                    f"{skill.about[key]}"
                )
        if {name: factor.shape for name, factor in skill.factors.items()} != wanted:
            raise UserError(
                f"init.files.{layout.skills[place]}: does not fit the sizes of the model"
            )
        for name, factor in skill.factors.items():
            state[name][place].copy_(factor)


def taken(state: State, place: int) -> dict[str, Tensor]:
    """The factors of one skill in the state of a model; `model.` of a checkpoint is cut off."""
    return {
        n.removeprefix("model."): w[place].contiguous() for n, w in state.items() if FACTOR in n
    }


@torch.no_grad()
def widen(model: Transformer, old: State, old_names: Sequence[str]) -> None:
    """Starts the routers as those of a smaller library: a skill that it did not have has the logit
    0 everywhere.

    Raises:
        UserError: a skill is gone, the gate of a logit of 0 is not 0, or the routers are of other
            sizes.
    """
    names = names_of(model)
    routers = {n: p for n, p in model.named_parameters() if ".router." in n}
    places = [names.index(name) if name in names else -1 for name in old_names]
    if -1 in places:
        raise UserError(
            f"experts.skills={names}: lacks {old_names[places.index(-1)]}, which the mixture "
            "before had"
        )
    if any(
        router.weigh.scores(torch.zeros(1, 1, device="cpu")).any() for router in model.routers()
    ):
        raise UserError(
            "init.mixture: a new skill starts without a share only with router/weigh=identity"
        )
    for name, parameter in routers.items():
        before = old.get(f"model.{name}")
        grows = before is not None and parameter.shape == (len(names), *before.shape[1:])
        if before is None or not (grows or parameter.shape == before.shape):
            raise UserError(
                f"init.mixture: has another router: {name} is not there, or of another size"
            )
        if grows and len(before) == len(old_names):
            parameter.zero_()
            parameter[places] = before
        else:
            parameter.copy_(before)


@torch.no_grad()
def merged(
    dense: State, skills: Mapping[str, Skill], alpha: Mapping[str, float]
) -> dict[str, Tensor]:
    """Return the state of a dense model with constant shares of skills in its weights.

    W = W_0 + sum_i alpha_i scale_i A_i B_i

    Args:
        dense: The state of the base, whose names begin with `model.`.
        skills: Skills by name.
        alpha: The share of each.

    Raises:
        UserError: A skill is of other sizes than the base, or a weight is not finite.
    """
    state = {name: weights.clone() for name, weights in dense.items()}
    for skill_name, skill in skills.items():
        prefixes = {
            name.removesuffix("skills_a").removesuffix("skills_b") for name in skill.factors
        }
        for prefix in sorted(prefixes):
            weight = state.get(f"model.{prefix}weight")  # (out, in)
            product = _product(skill, prefix)  # (in, out)
            if weight is None or product is None or product.T.shape != weight.shape:
                raise UserError(
                    f"skill {skill_name}: does not fit the sizes of the base at {prefix}weight"
                )
            weight += alpha[skill_name] * float(skill.about["scale"]) * product.T
            if not weight.isfinite().all():
                raise UserError(
                    f"{skill_name}={alpha[skill_name]}: makes weights that are not finite; use "
                    "less of it"
                )
    return state


def _product(skill: Skill, prefix: str) -> Tensor | None:
    """A B (in, out) of one linear layer;
    None where a factor is missing or they do not go together.
    """
    # (in, rank), (rank, out)
    a = skill.factors.get(f"{prefix}skills_a")
    b = skill.factors.get(f"{prefix}skills_b")
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        return None
    return a @ b
