"""BASE: in training an optimal assignment gives every expert equally many tokens; in evaluation a token takes its best.

    maximise sum_t choice_(t, a_t)   so that every expert gets at most ceil(N / E) of the N valid tokens

Lewis et al. 2021, arXiv 2103.16716, section 3.1, eq. 2-3; the gate is the sigmoid of the logit and k=1. For k > 1 the
assignment is solved k times, each time without the pairs that are taken. It is exact (scipy's Jonker-Volgenant, on the
host: O(N^3) at worst, so keep micro-batches to a few thousand tokens) where the paper's auction is within epsilon. What
is balanced is the batch of one rank; assigning looks at later tokens, so training is not causal.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from app.registry import register
from routers.select.top_k import TopK

FORBIDDEN, TAKEN = -1e6, -2e6  # worth of pairs that must not be assigned: below any sum of scores


@register("select")
class Base(TopK):
    """As top_k, but assigned in training. A token that finds no place any more takes the best expert it has not got.

    Raises:
        ValueError: `k` is not in 1..num_experts.
    """

    causal = "eval"
    scope = "batch"

    def forward(self, scores: Tensor, choice: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().forward(scores, choice, valid)
        token = valid.flatten().nonzero().flatten()  # (N,)
        worth = np.maximum(choice[token].double().cpu().numpy(), FORBIDDEN)  # (N, E)
        expert = [self._assign(worth) for _ in range(self.k)]  # K times (N,)
        return token.repeat(len(expert)), torch.from_numpy(np.concatenate(expert)).to(token.device)

    @staticmethod
    def _assign(worth: np.ndarray) -> np.ndarray:
        """The expert of every row of worth (N, E); marks the assigned pairs as taken."""
        num_tokens, num_experts = worth.shape
        places = np.repeat(np.arange(num_experts), -(-num_tokens // num_experts))
        row, place = linear_sum_assignment(worth[:, places], maximize=True)
        expert = places[place]
        expert = np.where(worth[row, expert] > FORBIDDEN, expert, worth.argmax(1))  # N % E > 0 may leave no free place
        worth[row, expert] = TAKEN
        return expert
