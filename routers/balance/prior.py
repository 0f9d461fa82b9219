"""Prior: pulls the mean gate of every expert towards a value that is stated beforehand.

    loss = sum_i (mean_t gate_ti - target_i)^2, mean over layers;   0 at the target

PSEC's released code pulls its two alphas so, (mean of both - 8)^2 + (mean of alpha_1 - 16)^2 (Liu
et al. 2025, arXiv 2502.05932, in its code only): the same least value, at alpha_0 = 0 and alpha_1 =
16, the safety skill, which are 0 and 1 here, where the factor 16 is the layout's: `target=[0, 1]`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.assignments import importance
from routers.contract import LossTerm, Routing, Sizes


@register("balance")
class Prior(LossTerm):
    """Pulls the mean gates towards a target.

    Args:
        weight: of the term in the total loss; at least 0.
        target: the mean gate of each expert; null: 1/E each.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, sizes: Sizes, *, weight: float, target: list[float] | None) -> None:
        super().__init__(sizes, weight=weight)
        num = sizes.num_experts
        require(
            "target",
            target,
            target is None or len(target) == num,
            f"must be {num} numbers, or null",
        )
        self.target = target if target is not None else [1 / num] * num

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        num_tokens = torch.stack([routing.valid.sum() for routing in routings]).clamp_min(1)
        mean = importance(routings) / num_tokens[:, None]  # (L, E)
        return (mean - mean.new_tensor(self.target)).square().sum(-1).mean()
