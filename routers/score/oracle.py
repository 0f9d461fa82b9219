"""Oracle: the domain of the text decides, so that every domain has experts of its own: the ceiling
of specialisation.

    logits_e = 0 where e is one of the `size` experts of the token's domain, -inf elsewhere;
        `learned`: (x W)_e for 0
    domain d has the experts d size, ..., d size + size - 1, modulo E

A reference that other routers are compared with, after the domain router of the MoE Routing Testbed
(2026, arXiv 2604.07030). No router of a language model: a prompt has no label. With `size` = k the
gates are all equal.
"""

import torch
from torch import Tensor, nn

from app.registry import UserError, register, require
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Oracle(Score):
    """Gives every domain its own experts.

    Args:
        size: experts of a domain; in 1..num_experts, or null: the layout's top_k.
        learned: whether a linear router chooses and weighs among the experts of the domain.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, size: int | None, learned: bool) -> None:
        super().__init__()
        self.size = sizes.top_k if size is None else size
        self.num_experts = sizes.num_experts
        require(
            "size",
            size,
            1 <= self.size <= sizes.num_experts,
            f"must be null or in 1..{sizes.num_experts}",
        )
        self.proj = nn.Linear(sizes.dim, sizes.num_experts, bias=False) if learned else None

    def forward(self, x: Tensor, context: Context) -> Scored:
        if context.domain is None:
            raise UserError(
                "router.score.name=oracle: reads the domain of a text, which is not known here"
            )
        logits = x.new_zeros(len(x), self.num_experts) if self.proj is None else self.proj(x)
        # (T, size)
        own = context.domain[:, None] * self.size + torch.arange(self.size, device=x.device)
        allowed = torch.zeros_like(logits, dtype=torch.bool).scatter(
            1, own % self.num_experts, True
        )
        return Scored(logits.masked_fill(~allowed, -torch.inf))  # (T, E)

    def directions(self) -> Tensor | None:
        return None if self.proj is None else self.proj.weight  # (E, D)
