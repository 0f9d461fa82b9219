"""Expert choice: each expert takes its best tokens, so the load is even by construction and a token
gets 0..E experts.

    expert e takes the C tokens of the batch with the largest choice_(t,e),   C = ceil(k N / E) of N
        valid tokens

Zhou et al. 2022, arXiv 2202.09368, section 3.2, eq. 1-3; k is their capacity factor c, the mean
number of experts per token. **Not causal**: whether an expert takes a token depends on later
tokens, so a language model sees its targets and a decoder has no batch to choose from. `positive`
with thresholds of earlier steps is its causal form.
"""

from typing import ClassVar

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Causal, Context, Scope, Select, Sizes


@register("select")
class ExpertChoice(Select):
    """Lets every expert take its best tokens; a token gets 0..E experts, and the load is even.

    Args:
        k: experts per token on average; in 1..num_experts.

    Raises:
        ValueError: a knob is out of its range.
    """

    causal: ClassVar[Causal] = "never"
    scope: ClassVar[Scope] = "batch"
    k: int

    def __init__(self, sizes: Sizes, *, k: int) -> None:
        super().__init__()
        require(
            "k",
            k,
            1 <= k <= sizes.num_experts,
            f"must be in 1..{sizes.num_experts}, the layout's routed experts",
        )
        self.k = k

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        num_tokens, num_experts = choice.shape
        # The capacity C counts real tokens. The room is what it would be without padding: a
        # constant of the shape, so that the host need not wait for the device.
        capacity = -(-self.k * context.valid.sum() // num_experts)
        room = -(-self.k * num_tokens // num_experts)
        choice = choice.masked_fill(~context.valid.flatten()[:, None], -torch.inf)
        value, token = choice.topk(room, dim=0)  # (room, E)
        is_beyond = torch.arange(room, device=choice.device)[:, None] >= capacity
        expert = torch.arange(num_experts, device=choice.device).expand(room, -1)
        expert = expert.masked_fill(is_beyond | (value == -torch.inf), num_experts)
        # Assignments stand in the order of their tokens.
        token, order = token.flatten().sort(stable=True)
        return token, expert.flatten()[order]
