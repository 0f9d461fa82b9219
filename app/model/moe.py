"""The mixture-of-experts layer: y = shared(x) + sum over the assignments of a token of gate *
expert(x).

A layout may narrow x before the experts and widen their sum, and may add assignments of its own. A
weighing may let the gate act on what an expert sees instead: expert(gate * x).
"""

import torch
from torch import Tensor, nn

from experts import grouped
from experts.contract import Experts
from experts.mixture import Mixture
from routers.assignments import acting, gates
from routers.contract import Context, Routing
from routers.router import Router


class MoE(nn.Module):
    """A router and a layout: a layer for our transformer, or for any other model.

    Another layer may take its place: it maps (x, context) to (y, Routing).
    """

    def __init__(self, router: Router, experts: Experts) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        # parameters of the largest expert
        self.largest = max(experts.expert_params())

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Routing]:
        """Output (B, S, D) of x (B, S, D), and who computed what;
        without a context no token is padding.
        """
        context = context or Context(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        routing = self.router(x.flatten(0, 1), context)
        return self.compute(x, acting(routing, context.alone)), routing

    def compute(self, x: Tensor, routing: Routing) -> Tensor:
        """Output (B, S, D) of x (B, S, D) under what acts of a routing."""
        tokens = x.flatten(0, 1)  # (T, D)
        if isinstance(self.experts, Mixture):
            return self.experts.mixed(tokens, gates(routing)).view_as(x)
        token, expert, gate = self.experts.assign(
            routing.token, routing.expert, routing.gate, len(tokens)
        )
        worth = grouped.rows_worth_a_product(tokens, self.largest)
        plan = grouped.plan(expert, token, self.experts.num_computed, len(tokens), worth)
        rows = grouped.dispatch(self.experts.enter(tokens), plan)  # (R, Z)
        if routing.on_input:
            rows = grouped.scale(rows, gate, plan)
            gate = torch.ones_like(gate)
        # (R, Z); under expert parallelism still on their way back
        outputs = self.experts(rows, plan.ends)
        shared = self.experts.shared(tokens)  # meanwhile
        routed = self.experts.leave(grouped.combine(outputs, gate, plan), tokens)  # (T, D)
        return (routed if shared is None else routed + shared).view_as(x)


class Unrouted(nn.Module):
    """A layer of which only the shared part exists:
    the dense layers of a model, and all layers of a dense one.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, None]:
        """Output (B, S, D) of x (B, S, D), and no routing."""
        y = self.experts.shared(x)
        assert y is not None, "a layout without routed experts has a shared part"
        return y, None
