"""The expert statistics of this project on a model of `transformers`, in any training loop:

    watched = watch(model)
    for batch in batches: model(**batch).loss.backward() ... print(watched.scalars())  # since the
        last call: experts/maxvio, router_by_layer/token_entropy/3, ...

Every router of transformers 5 that returns logits, weights and indices is observed. Its score
function is found from what it returns: the weights of a token are its scores up to a factor.
Padding does not count, nor what is computed again in the backward pass. Passes in evaluation mode
are counted apart, under tags that begin with `eval_`. On several processes every one of them asks
at the same steps, and gets the sums over all.
"""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from app.training.metrics import Total, group_of, routing_statistics, routing_sums
from app.training.tags import by_layer
from routers.contract import Routing
from routers.distributions import normalized

# logarithms of the score functions of transformers' routers, of logits (T, E)
LOG_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.log_softmax(-1),
    "sigmoid": nn.functional.logsigmoid,
    "sqrt_softplus": lambda logits: 0.5 * nn.functional.softplus(logits).log(),
}
# of the logarithms of weights, in float32 and in half precision
EXACT = 1e-3
ROUNDED = 0.05


def watch(model: nn.Module) -> "Watched":
    """Attach to the routers of a model.

    Raises:
        ValueError: It has none that is known.
    """
    routers = [module for module in model.modules() if type(module).__name__.endswith(ROUTERS)]
    if not routers:
        raise ValueError(
            f"{type(model).__name__}: has no router of transformers 5 (a module named "
            "...TopKRouter)"
        )
    return Watched(model, routers)


# ends of their class names
ROUTERS = ("TopKRouter", "TopkRouter", "HashRouter")


class Watched:
    """What the routers of a model have chosen since it was last asked."""

    def __init__(self, model: nn.Module, routers: list[nn.Module]) -> None:
        # of training, and of evaluation
        self._totals = {True: Total(), False: Total()}
        self._signature = inspect.signature(model.forward)
        # of the forward pass that is under way
        self._routings: list[Routing] | None = None
        self._valid: Tensor | None = None  # (B, S)
        # of the routers whose score function is certain
        self._score_functions: dict[nn.Module, str] = {}
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
            *(router.register_forward_hook(self._look) for router in routers),
        ]

    def statistics(self, training: bool = True) -> dict[str, Tensor]:
        """Return the STATISTICS of `app.training.metrics`, a value for each layer (L,); empty if
        nothing was seen.

        Args:
            training: Of passes in training mode, or of those in evaluation mode.
        """
        sums = self._totals[training].take()
        return routing_statistics(sums) if sums else {}

    def scalars(self) -> dict[str, float]:
        """Return the same under the tags of our own runs: the mean over the layers, and each layer.

        Those of evaluation begin with `eval_`. What needs the scores of a router is left out where
        its score function is none of LOG_SCORES.
        """
        found = {}
        for training, prefix in ((True, ""), (False, "eval_")):
            for name, values in self.statistics(training).items():
                for tag, value in by_layer(group_of(name), name, values.tolist()).items():
                    if not math.isnan(value):
                        found[prefix + tag] = value
        return found

    def close(self) -> None:
        """Detach from the model."""
        for hook in self._hooks:
            hook.remove()

    def _begin(
        self, model: nn.Module, inputs: tuple[object, ...], named: dict[str, object]
    ) -> None:
        given = self._signature.bind_partial(*inputs, **named).arguments
        given.update(given.pop("kwargs", {}))
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        self._valid = None
        if tokens is not None:
            batch, length = tokens.shape[:2]
            self._valid = _valid(given.get("attention_mask"), batch, length)
        self._routings = []

    @torch.no_grad()
    def _look(self, router: nn.Module, inputs: object, outputs: tuple[Tensor, ...]) -> None:
        if self._routings is None:
            return
        logits, weight, index = outputs[:3]
        is_exact = weight.dtype == logits.dtype == torch.float32
        logits = logits.float().flatten(0, -2)
        weight = weight.float().flatten(0, -2)
        index = index.flatten(0, -2)
        name = self._score_functions.get(router)
        if name is None:
            limit = EXACT if is_exact else ROUNDED
            name, is_certain = _score_function(logits, weight, index, limit)
            if name is not None and is_certain:
                self._score_functions[router] = name
        if name is None:
            # What needs scores is left out of the statistics.
            log_scores = torch.full_like(logits, torch.nan)
        else:
            log_scores = LOG_SCORES[name](logits)
        self._routings.append(_routing(logits, log_scores, weight, index, self._valid))

    @torch.no_grad()
    def _end(self, model: nn.Module, inputs: object, outputs: object) -> None:
        if self._routings:
            self._totals[model.training].add(routing_sums(self._routings))
        self._routings = None


def _valid(mask: object, batch: int, length: int) -> Tensor | None:
    """Which of the newest positions (B, S) are no padding;
    a mask may also be of those before, out of a cache.
    """
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 2:
        return mask[:, -length:].bool().expand(batch, length)
    # (B, 1, S, all): of bools, or of numbers that are added to the logits
    allowed = mask
    if mask.dtype != torch.bool:
        allowed = mask > torch.finfo(mask.dtype).min / 2
    # A position is real if some position may look at it.
    return allowed.any(-1).any(1)[:, -length:].expand(batch, length)


def _score_function(
    logits: Tensor, weight: Tensor, index: Tensor, limit: float
) -> tuple[str | None, bool]:
    """Return the score function that explains the weights best, None if none does,
    and whether it is the only one.
    """
    spreads = {name: _spread(of(logits), weight, index) for name, of in LOG_SCORES.items()}
    best, second = sorted(spreads, key=spreads.__getitem__)[:2]
    if not spreads[best] < limit:
        return None, False
    return best, spreads[second] >= limit


def _spread(log_scores: Tensor, weight: Tensor, index: Tensor) -> float:
    """How far weights (T, K) are from being scores up to a factor:
    of each token, or of all if it has one expert.
    """
    factor = weight.clamp_min(1e-20).log() - log_scores.gather(1, index)
    if index.size(1) == 1:
        factor = factor.T
        # divided by their sum, which says nothing
        if weight.std() == 0:
            return math.inf
    return float((factor.amax(-1) - factor.amin(-1)).mean())


def _routing(
    logits: Tensor, log_scores: Tensor, weight: Tensor, index: Tensor, valid: Tensor | None
) -> Routing:
    """Return the routing of a router with logits and log scores (T, E),
    weights and indices (T, K).
    """
    num_tokens, num_experts = logits.shape
    valid = (
        torch.ones(1, num_tokens, dtype=torch.bool, device=logits.device)
        if valid is None
        else valid
    )
    token = torch.arange(num_tokens, device=logits.device).repeat_interleave(index.size(1))
    expert = index.flatten().masked_fill(~valid.flatten()[token], num_experts)
    gate = weight.flatten().masked_fill(expert == num_experts, 0)
    return Routing(
        token,
        expert,
        gate,
        expert < num_experts,
        logits,
        log_scores.exp(),
        normalized(log_scores),
        index.size(1),
        valid,
        None,
    )
