"""What the parts of a router promise each other: score -> weigh -> select -> gates, and the balance
that watches them.

Letters in shape comments: B sequences of S positions, T = B*S tokens, D model width, E routed
experts, K experts per token, A assignments (token, expert), L MoE layers, P width of the state
between layers.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from app.registry import require
from routers.assignments import assigned, expert_load, softmax_per_token
from routers.distributions import normalized
from routers.noise import Part, rows_of_noise

Causal = Literal["always", "eval", "never"]
Scope = Literal["token", "sequence", "batch"]


class Sizes(NamedTuple):
    """The sizes that a router's parts are built from."""

    dim: int  # D
    num_experts: int  # E, routed experts only
    top_k: int  # K of the layout
    num_layers: int = 1  # L, MoE layers only
    # only for scores that look at token ids
    vocab_size: int = 0
    # which MoE layer this part belongs to, counted from 0
    layer: int = 0
    # routed experts that compute next to nothing: they return 0, their input or a constant
    free: tuple[int, ...] = ()
    # those of them that return 0
    null: tuple[int, ...] = ()


class Context(NamedTuple):
    """What flows into a router beside the tokens."""

    valid: Tensor  # (B, S) bool, False on padding
    token_ids: Tensor | None = None  # (T,) int64
    # (T, P) float32, from the score of the MoE layer below; None in the first
    state: Tensor | None = None
    offset: Tensor | float = 0.0  # (E,) float32, added to the scores for the choice only
    # the part of the score that all layers share
    shared: nn.Module | None = None
    # of this step and layer
    seed: int = 0
    # which row of the whole step the first one here is
    row: int = 0
    # optimizer steps made so far; only what happens in training may hang on it
    step: int = 0
    # (T,) int64, which text a token is from; None where nobody knows, as of a prompt
    domain: Tensor | None = None
    # the expert that acts whatever the router says, with gate 1; E: none does
    alone: int | None = None

    def drawn(self, part: Part, columns: int, draw: Callable[..., Tensor] = torch.rand) -> Tensor:
        """This layer's noise at every position (T, columns) float32, other noise for each part."""
        return rows_of_noise(
            part, self.seed, self.row, (*self.valid.shape, columns), self.valid.device, draw
        )


class Routing(NamedTuple):
    """What flows out: expert[a] computes token[a],
    its output (or its input) weighted by gate[a].
    """

    token: Tensor  # (A,) int64
    expert: Tensor  # (A,) int64 in 0..E; E: unassigned
    gate: Tensor  # (A,) float32, 0 where unassigned and at experts that return 0
    kept: Tensor  # (A,) bool, False where unassigned and where the capacity dropped the assignment
    logits: Tensor  # (T, E) float32, before the activation
    scores: Tensor  # (T, E) float32, after the activation, without the offset
    probabilities: Tensor  # (T, E) float32, the scores normalised over the experts
    # experts per token that the selection gives, exactly or on average; the layout's where the data
    # decide
    top_k: int
    valid: Tensor  # (B, S) bool
    state: Tensor | None  # (T, P) float32, for the score of the MoE layer above
    # (T, E) float32, logits before their noise; None where there is none
    clean: Tensor | None = None
    noise_std: Tensor | None = None  # (T, E) float32, standard deviation of that noise
    # (E, D') float32, one learned direction per expert; None where there are none
    directions: Tensor | None = None
    # whether a gate multiplies what its expert sees, not what it returns
    on_input: bool = False


class Scored(NamedTuple):
    """What a score says of the tokens."""

    logits: Tensor  # (T, E) float32; -inf forbids the expert
    state: Tensor | None = None  # (T, P) float32, for the score of the MoE layer above
    # (T, E) float32, logits before their noise; None where there is none
    clean: Tensor | None = None
    noise_std: Tensor | None = None  # (T, E) float32, standard deviation of that noise


class Score(nn.Module):
    """The part of a router that says how well each expert fits each token."""

    # whether training adds noise of a known size to the logits
    noisy: ClassVar[bool] = False
    # whether it hands a state to the score of the MoE layer above
    carries: ClassVar[bool] = False

    def forward(self, x: Tensor, context: Context) -> Scored:
        """Logits of tokens x (T, D) float32, and what goes with them."""
        raise NotImplementedError

    def directions(self) -> Tensor | None:
        """The router's rows (E, D') for losses on their angles;
        None where experts have no learned direction.
        """
        return None

    def shared(self) -> nn.Module | None:
        """A new module that all layers' scores share;
        asked of the first layer, owned by the model.
        """
        return None


class Activated(NamedTuple):
    """Logits, and what a weighing makes of them."""

    logits: Tensor  # (T, E) float32; -inf forbids the expert
    scores: Tensor  # (T, E) float32
    log_scores: Tensor  # (T, E) float32, exact also where a score rounds to 0; -inf where it is 0
    probabilities: Tensor  # (T, E) float32, the scores normalised over the experts


class Weigh(nn.Module):
    """The part of a router that turns logits into scores, and the scores of selected experts into
    gates.

    Args:
        sizes: of the router.
        normalize: whether the gates of a token are divided by their sum.
        scale: factor on every gate; above 0.

    Raises:
        ValueError: `scale` is not positive.
    """

    # whether the gate multiplies what the expert sees, not what it returns
    on_input: ClassVar[bool] = False
    # whether scores and gates may be negative
    signed: ClassVar[bool] = False

    def __init__(self, sizes: Sizes, *, normalize: bool, scale: float) -> None:
        super().__init__()
        require("scale", scale, scale > 0, "must be positive")
        self.normalize = normalize
        self.scale = scale

    def scores(self, logits: Tensor) -> Tensor:
        """Scores (T, E) of logits (T, E); finite also where the logit is -inf,
        not negative unless `signed`.
        """
        raise NotImplementedError

    def log_scores(self, logits: Tensor) -> Tensor:
        """Their logarithms (T, E), -inf where a score is 0;
        an activation that rounds to 0 gives them directly.
        """
        scores = self.scores(logits)
        return scores.clamp_min(1e-30).log().masked_fill(scores <= 0, -torch.inf)

    def activated(self, logits: Tensor) -> Activated:
        """What the choice and the gates are made of."""
        log_scores = self.log_scores(logits)
        return Activated(logits, self.scores(logits), log_scores, normalized(log_scores))

    def forward(
        self, activated: Activated, token: Tensor, expert: Tensor, context: Context
    ) -> Tensor:
        """Gates (A,) of the assignments (token, expert), a token's in the order of its choices;
        0 where expert is E.
        """
        if not self.normalize:
            return assigned(activated.scores, token, expert) * self.scale
        log_score = assigned(activated.log_scores, token, expert, -torch.inf)
        return softmax_per_token(log_score, token, len(activated.logits)) * self.scale  # (A,)


class Select(nn.Module):
    """The part of a router that chooses who computes what; called without gradient."""

    # when does the choice depend on no later token?
    causal: ClassVar[Causal] = "always"
    # what does the choice of one token depend on?
    scope: ClassVar[Scope] = "token"
    # and in evaluation? None: on the same
    eval_scope: ClassVar[Scope | None] = None
    # what is the offset of the choice added to?
    by: ClassVar[Literal["scores", "logits"]] = "scores"
    # whether it keeps to a number of experts per token without a balance term
    limited: ClassVar[bool] = True
    # experts per token, exactly or on average; None: the data decide
    k: int | None = None
    # experts per token at most; None: all
    max_k: int | None = None

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Assignments token (A,), expert (A,) in the order of their tokens, by the choice (T, E):
        scores or logits plus offset, -inf where forbidden; those of padding are discarded
        afterwards.
        """
        raise NotImplementedError


class Selected(NamedTuple):
    """What was chosen, before anything is dropped."""

    token: Tensor  # (A,) int64
    expert: Tensor  # (A,) int64 in 0..E; E: unassigned
    gate: Tensor  # (A,) float32
    scores: Tensor  # (T, E) float32
    # experts per token that the selection gives: the capacity is a constant of the shape
    top_k: int


class Drop(nn.Module):
    """The part of a router that drops assignments whose expert is full; called without gradient."""

    # when does keeping an assignment depend on no later token?
    causal: Causal = "always"
    # what does keeping an assignment depend on?
    scope: ClassVar[Scope] = "token"
    # and in evaluation? None: on the same
    eval_scope: Scope | None = None

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(self, selected: Selected, context: Context) -> Tensor:
        """Which assignments are computed: (A,) bool, False where unassigned."""
        raise NotImplementedError


class Balance(nn.Module):
    """A term that keeps the load even, by a loss, by an offset to the choice, or by both."""

    # whether it holds the number of experts per token
    holds_k: ClassVar[bool] = False
    # of the loss in the total
    weight: float = 1.0

    def check(self, score: Score, select: Select) -> None:
        """Refuses a router's parts that this term cannot work with; called when the model is built.

        Raises:
            ValueError: they do not give what this term needs.
        """

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor | None:
        """The raw term for one micro-batch's routings of all L layers, a scalar; None if it has no
        loss.

        `seen` is this term's sum of `observe` over the earlier micro-batches of the same optimizer
        step.
        """
        return None

    def offset(self) -> Tensor | None:
        """(L, E) float32, added to the scores for the choice;
        None if this term does not steer the choice.
        """
        return None

    def observe(self, routings: Sequence[Routing]) -> Tensor:
        """Statistics of one micro-batch that add up over micro-batches and ranks;
        by default the load (L, E).
        """
        return expert_load(routings)

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        """Called once after every optimizer step with the sum of
        `observe` and the number of valid tokens.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the state between devices but keeps its dtype:
        a bfloat16 bias would swallow its own updates.
        """
        states = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in states.items():
            new = getattr(self, name)
            setattr(self, name, new if new.dtype == old.dtype else old.to(new.device))
        return self


class LossTerm(Balance):
    """A balance term that is nothing but a loss.

    Args:
        sizes: of the router.
        weight: of the loss in the total; at least 0.

    Raises:
        ValueError: `weight` is negative.
    """

    def __init__(self, sizes: Sizes, *, weight: float) -> None:
        super().__init__()
        require("weight", weight, weight >= 0, "must not be negative")
        self.weight = weight
