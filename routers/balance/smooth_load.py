"""Load loss: the squared coefficient of variation of a differentiable estimate of the load under
new noise.

    P(t, i) = Phi((clean_(t,i) - kth_excluding(H_t, k, i)) / std_(t,i))      Load_i = sum_t P(t, i)
    loss = CV(Load)^2, mean over layers

Shazeer et al. 2017, arXiv 1701.06538, appendix A, eq. 8-11 (weight 0.1): the probability that
expert i is among the k best logits H of token t if only its own noise is drawn again. k is the
token's number of assignments; where no k-th other expert is left, P is 1. 0, the minimum, if all
expected loads are equal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.assignments import experts_per_token
from routers.contract import LossTerm, Routing, Score, Select
from routers.distributions import squared_variation


@register("balance")
class SmoothLoad(LossTerm):
    """Evens out the expected load through the noise of the score; needs a score that adds noise.

    Args:
        weight: of the term in the total loss; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def check(self, score: Score, select: Select) -> None:
        name = type(score).__name__
        require(
            "score",
            name,
            score.noisy,
            "adds no noise to its logits, as smooth_load needs; set router/score=noisy",
        )

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        loads = torch.stack([self._load(routing) for routing in routings])  # (L, E)
        return squared_variation(loads).mean()

    def _load(self, routing: Routing) -> Tensor:
        """The expected load (E,): each expert's probability to be chosen under new noise."""
        assert routing.clean is not None and routing.noise_std is not None, (
            "a noisy score tells both in training"
        )
        k = experts_per_token(routing)[:, None]  # (T, 1)
        ordered = routing.logits.sort(-1, descending=True).values  # (T, E)
        none_left = ordered.new_full((len(ordered), 1), -torch.inf)
        ordered = torch.cat([ordered, none_left], -1)  # (T, E + 1)

        # The logit that an expert must exceed: the k-th largest of the others.
        next_best = ordered.gather(1, k)
        last_chosen = ordered.gather(1, (k - 1).clamp_min(0))
        is_chosen = routing.logits > next_best  # (T, E)
        rival = torch.where(is_chosen, next_best, last_chosen)

        # Without a rival, the expert is chosen whatever the noise.
        has_rival = rival.isfinite()
        z = (routing.clean - rival.where(has_rival, 0)) / routing.noise_std.clamp_min(1e-10)
        probability = torch.special.ndtr(z).where(has_rival, 1)
        return (probability * routing.valid.view(-1, 1)).sum(0)
