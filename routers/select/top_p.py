"""Top-p: each token takes as many experts as gather a probability above p, a hard token more than
an easy one.

    sort the probabilities downwards; keep the shortest prefix whose sum is > p, at least `min_k`,
        at most `max_k`

Huang et al. 2024 ("Harder Tasks Need More Experts", Dynamic_MoE), arXiv 2403.07652; there p = 0.4
and the gates are not normalised. A sum of exactly p does not stop. Sums are in float32: in
bfloat16, as in the released code, 0.8 % of the tokens get another number of experts. Scores that
are no probabilities count by their share of the token's sum; an offset changes the order of the
experts, not what they count.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class TopP(Select):
    """Takes the fewest experts whose probabilities sum to more than p.

    Args:
        p: probability to be exceeded; in 0..1.
        min_k: experts per token at least; at least 1.
        max_k: experts per token at most; in min_k..num_experts, or null: all.

    Raises:
        ValueError: a knob is out of its range.
    """

    max_k: int

    def __init__(self, sizes: Sizes, *, p: float, min_k: int, max_k: int | None) -> None:
        super().__init__()
        require("p", p, 0 <= p <= 1, "must be in 0..1")
        limit = sizes.num_experts if max_k is None else max_k
        require(
            "max_k",
            max_k,
            1 <= limit <= sizes.num_experts,
            f"must be null or in 1..{sizes.num_experts}",
        )
        require("min_k", min_k, 1 <= min_k <= limit, f"must be in 1..{limit}, max_k")
        self.p = p
        self.min_k = min_k
        self.max_k = limit

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        num_tokens, num_experts = choice.shape
        expert = choice.sort(dim=-1, descending=True, stable=True).indices  # (T, E)
        # (T, E); p = 1 keeps all
        mass = activated.probabilities.gather(1, expert).cumsum(-1).clamp_max(1.0)
        # (T, 1)
        wanted = ((mass <= self.p).sum(-1, keepdim=True) + 1).clamp(self.min_k, self.max_k)
        place = torch.arange(self.max_k, device=choice.device)
        expert = expert[:, : self.max_k].masked_fill(place >= wanted, num_experts)  # (T, max_k)
        token = torch.arange(num_tokens, device=choice.device).repeat_interleave(self.max_k)
        return token, expert.flatten()  # (T*max_k,), token-major
