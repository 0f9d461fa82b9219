"""Group-limited top-k: a token first picks its best groups of experts, then its k best experts
inside them.

    G_g = max of the choice in group g (`max`), or the sum of its two best (`top2`)
    keep the `limit` groups with the largest G_g, then top-k among their experts

DeepSeek-V2, arXiv 2405.04434, section 2.2.2 (`max`, device-limited: 3 of 8 groups); DeepSeek-V3,
arXiv 2412.19437, section 2.1.2 (`top2`, node-limited: 4 of 8; the released code, and ours, ranks
groups by the offset scores). V2's code sets the other groups' scores to 0, V3's and ours to -inf.
Groups are neighbouring experts, as even as E allows; where only one expert of a group is allowed,
it counts alone.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from app.registry import register, require
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class GroupLimited(Select):
    """Takes the k best experts of a token out of its best groups, so that few devices see it.

    Args:
        k: experts per token; in 1..num_experts.
        groups: that the experts are split into; in 1..num_experts.
        limit: groups that a token may use; they must hold k experts.
        score: of a group: `max` (DeepSeek-V2) or `top2`, the sum of its two best (V3).

    Raises:
        ValueError: a knob is out of its range.
    """

    members: Tensor
    group: Tensor
    k: int

    def __init__(
        self, sizes: Sizes, *, k: int, groups: int, limit: int, score: Literal["max", "top2"]
    ) -> None:
        super().__init__()
        num_experts = sizes.num_experts
        require(
            "groups",
            groups,
            1 <= groups <= num_experts,
            f"must be in 1..{num_experts}, the routed experts",
        )
        require("limit", limit, 1 <= limit <= groups, f"must be in 1..{groups}, groups")
        room = limit * (num_experts // groups)
        require(
            "k",
            k,
            1 <= k <= room,
            f"must be in 1..{room}, the experts in {limit} of {groups} groups",
        )
        self.k = self.max_k = k
        self.limit = limit
        self.best = 1 if score == "max" else 2
        parts = torch.arange(num_experts).tensor_split(groups)
        size = max(self.best, len(parts[0]))
        # (G, size), E where a group has no further expert
        self.register_buffer(
            "members",
            torch.stack([functional.pad(p, (0, size - len(p)), value=num_experts) for p in parts]),
            persistent=False,
        )
        owner = torch.cat([torch.full_like(p, i) for i, p in enumerate(parts)])
        self.register_buffer("group", owner, persistent=False)  # (E,)

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        # The score of a group is the sum of its best one or two experts.
        padded = functional.pad(choice, (0, 1), value=-torch.inf)  # (T, E + 1)
        first, *second = padded[:, self.members].topk(self.best, dim=-1).values.unbind(-1)
        score = first  # (T, G)
        for value in second:
            score = score + value.masked_fill(value == -torch.inf, 0)

        # Experts of other groups than the best ones are closed.
        picked = score.topk(self.limit, dim=-1).indices  # (T, limit)
        is_open = torch.zeros_like(score, dtype=torch.bool).scatter(1, picked, True)  # (T, G)
        choice = choice.masked_fill(~is_open[:, self.group], -torch.inf)  # (T, E)
        value, expert = choice.topk(self.k, dim=-1)  # (T, K)
        expert = expert.masked_fill(value == -torch.inf, choice.size(1))
        token = torch.arange(len(choice), device=choice.device).repeat_interleave(self.k)
        return token, expert.flatten()  # (T*K,), token-major
