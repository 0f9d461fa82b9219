"""Sequence top-k: the budget is k experts per token on average over a sequence, and hard tokens get
more of it.

    training:    the k n best pairs (token, expert) of a sequence of n tokens
    evaluation:  pair (t, e) is taken iff it is among the k t best pairs of the first t tokens
                 ("online")

Wen et al. 2025, arXiv 2511.06494, section 3: every token gets at least one and at most k + 2
experts. The online form looks back only, so evaluation is causal and training is not; it never
takes back an expert of an earlier token, so its mean may differ from k. How `min_k` and `max_k`
keep to the budget is our reading: a token's best `min_k` pairs come first, and those beyond its
best `max_k` do not compete.
"""

import torch
from torch import Tensor
from torch.nn import functional

from app.registry import register, require
from routers.contract import Activated, Context, Select, Sizes


@register("select")
class SeqTopK(Select):
    """Takes the best pairs of a sequence, k for each token on average.

    Args:
        k: experts per token on average over a sequence; in 1..num_experts.
        min_k: experts per token at least; in 0..k.
        max_k: experts per token at most; in k..num_experts, or null: k + 2, or all.

    Raises:
        ValueError: a knob is out of its range.
    """

    causal = "eval"
    scope = "sequence"
    k: int
    max_k: int

    def __init__(self, sizes: Sizes, *, k: int, min_k: int, max_k: int | None) -> None:
        super().__init__()
        limit = min(k + 2, sizes.num_experts) if max_k is None else max_k
        most = sizes.num_experts
        require("k", k, 1 <= k <= most, f"must be in 1..{most}, the layout's routed experts")
        require("min_k", min_k, 0 <= min_k <= k, f"must be in 0..{k}, k")
        require("max_k", max_k, k <= limit <= most, f"must be null or in {k}..{most}")
        self.k = k
        self.min_k = min_k
        self.max_k = limit

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        num_tokens, num_experts = choice.shape
        valid = context.valid
        value, expert = choice.topk(self.max_k, dim=-1)  # (T, M), best first

        # A token's best min_k pairs come before all others, unless they are forbidden.
        first = value[:, : self.min_k]
        value[:, : self.min_k] = first.masked_fill(first > -torch.inf, torch.inf)
        value = value.masked_fill(~valid.flatten()[:, None], -torch.inf)
        value = value.view(*valid.shape, -1)  # (B, S, M)

        budget = valid.cumsum(1)[:, :, None] * self.k  # (B, S, 1): of the tokens so far
        if self.training:
            taken = full_rank(value) < budget[:, -1:]
        else:
            taken = prefix_rank(value) < budget
        token = torch.arange(num_tokens, device=choice.device).repeat_interleave(self.max_k)
        expert = expert.masked_fill(~taken.view_as(expert), num_experts)
        return token, expert.flatten()  # (T*M,), token-major


def full_rank(value: Tensor) -> Tensor:
    """How many pairs of its sequence come before each pair of value (B, S, M): (B, S, M);
    the earlier wins a tie.
    """
    order = value.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.size(1), device=value.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places).view_as(value)


def prefix_rank(value: Tensor) -> Tensor:
    """As full_rank, but among the pairs of the tokens so far: by merging, so S M log^2 steps
    instead of (S M)^2.

    At width w, each token of the right half of a block of 2w learns how many pairs of the left half
    beat it.
    """
    batch, length, pairs = value.shape
    # The number of tokens becomes a power of two.
    missing = (1 << (length - 1).bit_length()) - length
    padded = functional.pad(value, (0, 0, 0, missing), value=-torch.inf)
    # The pairs of a token are in order already.
    rank = torch.arange(pairs, device=value.device).expand(padded.shape).contiguous()
    width = 1
    while width < padded.size(1):
        size = width * pairs
        left, right = padded.view(batch, -1, 2, size).unbind(2)  # (B, blocks, size)
        worse = torch.searchsorted(left.sort(dim=-1).values, right.contiguous())
        rank.view(batch, -1, 2, size)[:, :, 1] += size - worse
        width *= 2
    return rank[:, :length]
