"""A router is score + weigh + select + drop:
which experts see a token, with which weight, and which are full.
"""

import torch
from torch import Tensor, nn

from app.registry import require
from routers.contract import (
    Activated,
    Context,
    Drop,
    Routing,
    Score,
    Scored,
    Select,
    Selected,
    Sizes,
    Weigh,
)


class Router(nn.Module):
    """Routes the tokens of one MoE layer.

    Raises:
        ValueError: a token has at most one expert and its gate would be constant, so the router
            would never learn.
    """

    null: Tensor

    def __init__(
        self, score: Score, weigh: Weigh, select: Select, drop: Drop, sizes: Sizes
    ) -> None:
        super().__init__()
        self.score = score
        self.weigh = weigh
        self.select = select
        self.drop = drop
        self.num_experts = sizes.num_experts
        self.top_k = sizes.top_k if select.k is None else select.k
        alone = "max_k" if select.k is None else "k"
        most = sizes.num_experts if select.max_k is None else select.max_k
        require(
            f"select.{alone}",
            most,
            most > 1 or not weigh.normalize,
            "a normalised gate of one expert is constant and teaches the router nothing; set "
            "router.weigh.normalize=false or select more experts",
        )
        null = [expert in sizes.null for expert in range(sizes.num_experts + 1)]
        self.register_buffer("null", torch.tensor(null), persistent=False)  # (E + 1,)

    @property
    def alone(self) -> bool:
        """Whether in evaluation what a token gets hangs on no other token."""
        return all((part.eval_scope or part.scope) == "token" for part in (self.select, self.drop))

    def forward(self, x: Tensor, context: Context) -> Routing:
        """Routing of tokens x (T, D); all of it in float32, because bfloat16 scores tie."""
        with torch.autocast(x.device.type, enabled=False):
            scored: Scored = self.score(x.float(), context)
            activated = self.weigh.activated(scored.logits)  # (T, E) each
            token, expert = self._choose(activated, context)  # (A,)
            # who returns 0 takes no share of a gate
            working = expert.masked_fill(self.null[expert], self.num_experts)
            gate = self.weigh(activated, token, working, context)  # (A,)
            with torch.no_grad():
                # (A,)
                kept = self.drop(
                    Selected(token, expert, gate, activated.scores, self.top_k), context
                )
            rows = self.score.directions()  # (E, D')
        return Routing(
            token,
            expert,
            gate,
            kept,
            scored.logits,
            activated.scores,
            activated.probabilities,
            self.top_k,
            context.valid,
            scored.state,
            scored.clean,
            scored.noise_std,
            rows,
            self.weigh.on_input,
        )

    @torch.no_grad()
    def _choose(self, activated: Activated, context: Context) -> tuple[Tensor, Tensor]:
        forbidden = activated.logits == -torch.inf
        by = activated.logits if self.select.by == "logits" else activated.scores
        choice = (by + context.offset).masked_fill(forbidden, -torch.inf)  # (T, E)
        token, expert = self.select(activated, choice, context)
        index = token * self.num_experts + expert.clamp(max=self.num_experts - 1)
        unassigned = forbidden.flatten()[index] | ~context.valid.flatten()[token]
        return token, expert.masked_fill(unassigned, self.num_experts)
