"""A trained model with one thing about its experts changed, for as long as a `with` lasts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

from app.model.assemble import build_model
from app.model.moe import MoE
from app.model.transformer import Transformer
from app.registry import UserError
from app.runs.read import TrainedRun
from routers.contract import Routing, Scored


def moe_layers(model: nn.Module) -> list[MoE]:
    """Those of a model, from the first to the last."""
    return [module for module in model.modules() if isinstance(module, MoE)]


@contextmanager
def forbidden(layers: Sequence[MoE], rule: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The experts that `rule` gives (T, E) bool of logits (T, E) do not exist:
    choice and gates are of the others.
    """

    def forbid(score: nn.Module, inputs: object, scored: Scored) -> Scored:
        return scored._replace(logits=scored.logits.masked_fill(rule(scored.logits), -torch.inf))

    with ExitStack() as held:
        for layer in layers:
            held.callback(layer.router.score.register_forward_hook(forbid).remove)
        yield


@contextmanager
def redirected(layer: MoE, to: Tensor) -> Iterator[None]:
    """What the router gives to expert e is computed by expert to[e], of to (E,) int64,
    under the same gate.
    """
    places = torch.cat((to, torch.tensor([len(to)])))  # E: unassigned

    def redirect(router: nn.Module, inputs: object, routing: Routing) -> Routing:
        return routing._replace(expert=places.to(routing.expert.device)[routing.expert])

    handle = layer.router.register_forward_hook(redirect)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def unshared(layers: Sequence[MoE]) -> Iterator[None]:
    """No shared expert serves anybody."""
    with ExitStack() as held:
        for layer in layers:
            held.enter_context(patch.object(layer.experts, "shared", lambda x: None))
        yield


def has_shared(run: TrainedRun) -> bool:
    """Whether there is a shared expert."""
    x = torch.zeros(1, run.config["model"]["dim"])
    return any(layer.experts.shared(x) is not None for layer in moe_layers(run.model))


def with_k(run: TrainedRun, k: int) -> Transformer | None:
    """The trained model with k experts per token;
    None where its selection has no such number, or not this one.
    """
    router = run.config["router"]
    if "k" not in router["select"]:
        return None
    config = {**run.config, "router": {**router, "select": {**router["select"], "k": k}}}
    try:
        model = build_model(config, run.text.tokenizer.vocab_size)
    except UserError:
        return None
    model.load_state_dict(run.model.state_dict())
    return model.eval()
