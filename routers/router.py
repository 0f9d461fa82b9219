"""A router is score + weigh + select + drop: which experts see a token, with which weight, and which are full."""

import torch
from torch import Tensor, nn

from app.registry import require
from routers.contract import Context, Drop, Routing, Score, Scored, Select, Selected, Sizes, Weigh


class Router(nn.Module):
    """Routes the tokens of one MoE layer.

    Raises:
        ValueError: the gate of the one selected expert would be constant, so the router would never learn.
    """

    def __init__(self, score: Score, weigh: Weigh, select: Select, drop: Drop, sizes: Sizes) -> None:
        super().__init__()
        constant = select.k == 1 and weigh.normalize
        require("select.k", select.k, not constant, "a normalised gate of one expert is constant and teaches the "
                "router nothing; set router.weigh.normalize=false or select more experts")  # fmt: skip
        self.score, self.weigh, self.select, self.drop = score, weigh, select, drop
        self.num_experts, self.top_k = sizes.num_experts, sizes.top_k

    def forward(self, x: Tensor, context: Context) -> Routing:
        """Routing of tokens x (T, D); all of it in float32, because bfloat16 scores tie."""
        with torch.autocast(x.device.type, enabled=False):
            scored: Scored = self.score(x.float(), context)
            logits = scored.logits  # (T, E)
            scores = self.weigh.scores(logits)  # (T, E)
            token, expert = self._choose(logits, scores, context)  # (A,)
            gate = self.weigh(scores, token, expert)  # (A,)
            with torch.no_grad():
                kept = self.drop(Selected(token, expert, gate, scores, context.valid, self.top_k, context.seed))  # (A,)
            rows = self.score.directions()  # (E, D')
        return Routing(
            token, expert, gate, kept, logits, scores, context.valid, scored.state, scored.clean, scored.noise_std, rows
        )

    @torch.no_grad()
    def _choose(self, logits: Tensor, scores: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        forbidden = logits == -torch.inf
        choice = (scores + context.offset).masked_fill(forbidden, -torch.inf)  # (T, E)
        token, expert = self.select(scores, choice, context.valid)
        num_experts = logits.size(1)
        index = token * num_experts + expert.clamp(max=num_experts - 1)
        unassigned = forbidden.flatten()[index] | ~context.valid.flatten()[token]
        return token, expert.masked_fill(unassigned, num_experts)
