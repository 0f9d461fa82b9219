"""Hash score: the experts of a token are a fixed, random function of its id, whatever the text
around it.

    logits_e = 0 where e is in table[token id], -inf elsewhere;
        with `learned`, (x W)_e in place of 0

Roller et al. 2021 (Hash Layers), arXiv 2106.04426, section 3.1; there k=1. Every MoE layer has its
own table, drawn from (seed, layer). `random`: k experts drawn alike for each id. `balanced`: among
every E neighbouring ids each expert occurs k times. The paper balances by the counts of the
training text; ids of a byte-pair vocabulary are roughly ordered by frequency, so neighbours are
about equally frequent, and no text is needed. `learned` weighs the fixed experts by a linear
router, as the first layers of DeepSeek-V4 do (arXiv 2606.19348, section 2.1).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from app.registry import register, require
from routers.contract import Context, Score, Scored, Sizes


@register("score")
class Hash(Score):
    """Fixes the experts of a token by a table over its id.

    Args:
        k: experts per id; in 1..num_experts.
        kind: `random`, or `balanced` over neighbouring ids.
        learned: whether a linear router weighs the experts of the table.
        seed: of the tables.

    Raises:
        ValueError: a knob is out of its range.
    """

    table: Tensor

    def __init__(
        self, sizes: Sizes, *, k: int, kind: Literal["random", "balanced"], learned: bool, seed: int
    ) -> None:
        super().__init__()
        self.num_experts = sizes.num_experts
        require(
            "k",
            k,
            1 <= k <= self.num_experts,
            f"must be in 1..{self.num_experts}, the layout's routed experts",
        )
        generator = torch.Generator().manual_seed(seed * 1_000 + sizes.layer)
        draw = self._random if kind == "random" else self._balanced
        self.register_buffer("table", draw(sizes.vocab_size, k, generator))  # (V, K) int64
        self.proj = nn.Linear(sizes.dim, sizes.num_experts, bias=False) if learned else None

    def forward(self, x: Tensor, context: Context) -> Scored:
        if context.token_ids is None:
            raise ValueError(
                "router.score.name=hash: reads token ids, which are not known here; give input_ids"
            )
        logits = x.new_zeros(len(x), self.num_experts) if self.proj is None else self.proj(x)
        fixed = torch.zeros_like(logits, dtype=torch.bool).scatter(
            1, self.table[context.token_ids], True
        )
        return Scored(logits.masked_fill(~fixed, -torch.inf))  # (T, E)

    def directions(self) -> Tensor | None:
        return None if self.proj is None else self.proj.weight  # (E, D)

    def _random(self, vocab_size: int, k: int, generator: torch.Generator) -> Tensor:
        draws = torch.rand(vocab_size, self.num_experts, generator=generator, device="cpu")
        return draws.topk(k, dim=-1).indices

    def _balanced(self, vocab_size: int, k: int, generator: torch.Generator) -> Tensor:
        """E neighbouring ids walk around one random circle of the experts,
        each taking k of them in turn.
        """
        num_circles = -(-vocab_size // self.num_experts)
        circles = torch.rand(
            num_circles, self.num_experts, generator=generator, device="cpu"
        ).argsort(-1)
        place = torch.arange(self.num_experts, device="cpu")[:, None] + torch.arange(
            k, device="cpu"
        )
        return circles[:, place % self.num_experts].flatten(0, 1)[:vocab_size]
