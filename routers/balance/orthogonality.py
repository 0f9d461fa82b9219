"""Router orthogonality (SimBal): the experts' directions are to be orthonormal, so that similar
tokens stay together.

    loss = || R^T R - I ||_1,
        the sum of absolute entries; R's columns are the experts' directions; mean over layers

Omi et al. 2025, arXiv 2506.14038, the loss L_orth; that the norm is the entrywise one, and its
weight, are unverified, and the paper's orthogonal initialisation of the router is not part of it.
0, the minimum, for orthonormal directions, which need E <= D'; the tokens have no influence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import LossTerm, Routing, Score, Select


@register("balance")
class Orthogonality(LossTerm):
    """Keeps the experts' directions orthonormal; needs a score that has learned directions.

    Args:
        weight: of the term in the total loss; at least 0.

    Raises:
        ValueError: a knob is out of its range.
    """

    def check(self, score: Score, select: Select) -> None:
        name = type(score).__name__
        learned = score.directions() is not None
        require(
            "score", name, learned, "has no learned direction per expert; set router/score=linear"
        )

    def loss(self, routings: Sequence[Routing], seen: Tensor | None) -> Tensor:
        return torch.stack([self._distance(r.directions) for r in routings]).mean()

    def _distance(self, rows: Tensor | None) -> Tensor:
        assert rows is not None, "checked when the model was built"
        rows = rows.float()  # (E, D')
        return (rows @ rows.T - torch.eye(len(rows), device=rows.device)).abs().sum()
