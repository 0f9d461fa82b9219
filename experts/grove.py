"""Grove MoE: every group of experts has a small adjugate expert that works once whenever one of the
group does.

    y = sum_i g_i FFN_i(x) + scale * sum_j (sum of g_i over the chosen i of group j) A_j(x)

A token whose experts share groups takes less computation than one whose experts are spread. Wu et
al. 2025, arXiv 2508.07785, section 3. The groups are consecutive experts. The adjugates are further
experts behind the E routed ones: `assign` sends a token to the adjugate of each of its groups, with
the sum of the gates, and drops the duplicates.
"""

from math import comb

import torch
from torch import Tensor

from app.registry import register, require
from experts.contract import Experts, Stacks, require_pool


@register("experts")
class Grove(Experts):
    """Routed experts in groups, each group with a small expert of its own that works once per
    token.

    Args:
        num_experts: E, routed experts.
        top_k: K, routed experts per token; in 1..num_experts.
        hidden_dim: F, width of a routed expert; at least 1.
        group_size: consecutive experts that share an adjugate; divides `num_experts`.
        adjugate_dim: width of an adjugate; at least 1.
        adjugate_scale: factor on what the adjugates return; above 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_experts: int,
        top_k: int,
        hidden_dim: int,
        group_size: int,
        adjugate_dim: int,
        adjugate_scale: float,
    ) -> None:
        super().__init__()
        require_pool(num_experts, top_k)
        for name, width in (("hidden_dim", hidden_dim), ("adjugate_dim", adjugate_dim)):
            require(name, width, width >= 1, "must be at least 1")
        divides = group_size >= 1 and num_experts % group_size == 0
        require("group_size", group_size, divides, f"must divide num_experts={num_experts}")
        require("adjugate_scale", adjugate_scale, adjugate_scale > 0, "must be positive")
        self.num_experts = num_experts
        self.top_k = top_k
        self.group_size = group_size
        self.num_groups = num_experts // group_size
        self.scale = adjugate_scale
        self.routed = Stacks(dim, [(num_experts, hidden_dim), (self.num_groups, adjugate_dim)])

    @property
    def num_computed(self) -> int:
        return self.num_experts + self.num_groups

    def assign(
        self, token: Tensor, expert: Tensor, gate: Tensor, num_tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        unassigned = expert == self.num_experts
        group = (expert // self.group_size).clamp(max=self.num_groups - 1)
        # (A,)
        place = (token * self.num_groups + group).masked_fill(
            unassigned, num_tokens * self.num_groups
        )
        order = torch.arange(len(token), device=token.device)
        table = num_tokens * self.num_groups + 1
        first = (
            order.new_full((table,), len(token)).scatter_reduce(0, place, order, "amin")[place]
            == order
        )
        gates = gate.new_zeros(table).index_add(0, place, gate)[place]
        adjugate = (group + self.num_experts).masked_fill(unassigned | ~first, self.num_computed)
        expert = expert.masked_fill(unassigned, self.num_computed)
        both = ((token, token), (expert, adjugate), (gate, self.scale * gates))
        # (A',), side by side
        token, expert, gate = (torch.stack(pair, 1).flatten() for pair in both)
        return token, expert, gate

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.routed(x, ends)  # (A', D)

    def expert_params(self) -> list[int]:
        own = self.routed.params()
        adjugates = sum(own[self.num_experts :]) / self.num_experts  # a share for each member
        return [int(each + adjugates) for each in own[: self.num_experts]]

    def active_params(self, top_k: float) -> float:
        own = self.routed.params()
        missed = comb(self.num_experts - self.group_size, round(top_k)) / comb(
            self.num_experts, round(top_k)
        )
        return top_k * own[0] + self.num_groups * (1 - missed) * own[-1]
