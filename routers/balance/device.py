"""Device-level balance loss: f.P over groups of experts that lie on one device, not over single
experts.

    f'_i = mean of f_j over the experts j of group i      P'_i = sum of their P_j
    loss = sum_i f'_i P'_i

DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066, eq. 15-17, with f and P of its eq. 13-14. Group i
holds the i-th E/D experts; f' is D times the group's share of the load, so this is the expert-level
loss over groups, 1.0 at uniform load.
"""

from typing import Literal

from torch import Tensor

from app.registry import register, require
from routers.balance.aux import Aux
from routers.contract import Routing, Sizes


@register("balance")
class Device(Aux):
    """The balance loss over groups of neighbouring experts: it leaves the experts inside a group
    free.

    Args:
        weight: of the term in the total loss; at least 0.
        scope: the tokens over which f and P are formed: `micro` (the micro-batch of a rank),
            `sequence` or `global` (the batch).
        num_groups: D, devices with equally many experts; divides the number of experts.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float,
        scope: Literal["micro", "sequence", "global"],
        num_groups: int,
    ) -> None:
        super().__init__(sizes, weight=weight, scope=scope, choices="all")
        divides = num_groups >= 1 and sizes.num_experts % num_groups == 0
        require(
            "num_groups",
            num_groups,
            divides,
            f"must divide {sizes.num_experts}, the number of routed experts",
        )
        self.num_groups = num_groups

    def loads(self, routing: Routing) -> Tensor:
        return self._grouped(super().loads(routing))

    def probabilities(self, routing: Routing) -> Tensor:
        return self._grouped(super().probabilities(routing))

    def _grouped(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.num_groups, -1)).sum(-1)  # (B, D)
