"""ReMoE's sparsity control: an L1 term on the gates whose coefficient follows the measured
sparsity.

    f_i = E / (K T) sum_t 1(t selects i)      loss = lambda 1/T sum_t sum_i f_i R(x_t)_i,
        mean over layers
    lambda <- lambda a^sign((1 - K/E) - S)    S = share of (token, expert) pairs not selected, over
        all layers

Wang et al. 2024 (ReMoE), arXiv 2412.14711, section 3.3 (eq. 6-7) and 3.4 (eq. 8-9, the factors f);
the published code starts at lambda = 1e-8 with a = 1.2. K is that of the layout, R the scores. The
value is lambda times the mean sum of a token's scores at uniform load and target sparsity; its
minimum is 0. lambda is kept within 1e-20..1e20, the paper sets no bound. It cannot undo a collapse:
an expert whose logit is negative for every token has no gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.assignments import expert_load
from routers.contract import Balance, Routing, Score, Select, Sizes


@register("balance")
class ReLULambda(Balance):
    """Holds the number of experts per token, with the selection `positive`, at the layout's K on
    average.

    Args:
        start: lambda before the first step; above 0.
        rate: a, factor on lambda per step; above 1.
        balanced: whether the scores of an expert with more load weigh more.

    Raises:
        ValueError: a knob is out of its range.
    """

    holds_k = True
    coefficient: Tensor

    def __init__(self, sizes: Sizes, *, start: float, rate: float, balanced: bool) -> None:
        super().__init__()
        require("start", start, start > 0, "must be positive")
        require("rate", rate, rate > 1, "must be above 1")
        self.rate = rate
        self.balanced = balanced
        self.share = sizes.top_k / max(sizes.num_experts, 1)
        self.register_buffer("coefficient", torch.tensor(float(start)))

    def check(self, score: Score, select: Select) -> None:
        name = type(select).__name__
        require(
            "select",
            name,
            not select.limited,
            "fixes the number of experts itself; set router/select=positive",
        )

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        valid = routings[0].valid.flatten()[:, None]  # (T, 1)
        num_tokens = valid.sum().clamp_min(1)
        each = torch.stack([(r.scores * valid).sum(0) for r in routings]) / num_tokens  # (L, E)
        if self.balanced:
            each = each * expert_load(routings) / (self.share * num_tokens)
        return self.coefficient.clone() * each.sum(-1).mean()

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        selected = total.mean() / num_tokens.clamp_min(1)
        power = torch.sign(selected - self.share) * (num_tokens > 0)
        self.coefficient.copy_((self.coefficient * self.rate**power).clamp(1e-20, 1e20))
