"""BASE: in training an optimal assignment gives every expert equally many tokens; in evaluation a
token takes its best.

    maximise sum_t choice_(t, a_t)   so that every expert gets at most ceil(N / E) of the N valid
                                     tokens

Lewis et al. 2021, arXiv 2103.16716, section 3.1, eq. 2-3; the gate is the sigmoid of the logit and
k=1. For k > 1 the assignment is solved k times, each time without the pairs that are taken. It is
exact where the paper's auction is within epsilon, and runs on the host. What is balanced is the
batch of one rank; assigning looks at later tokens, so training is not causal.
"""

import numpy as np
import torch
from torch import Tensor

from app.registry import register
from routers.contract import Activated, Context
from routers.select.top_k import TopK

# worth of pairs that must not be assigned: below any sum of scores
FORBIDDEN = -1e6
TAKEN = -2e6


@register("select")
class Base(TopK):
    """Takes the k best experts in evaluation; in training the pairs of an optimal balanced
    assignment.

    A token that finds no place any more takes the best expert that it has not got.

    Args:
        k: experts per token; in 1..num_experts.

    Raises:
        ValueError: a knob is out of its range.
    """

    causal = "eval"
    scope = "batch"
    eval_scope = "token"

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().forward(activated, choice, context)
        token = context.valid.flatten().nonzero().flatten()  # (N,)
        worth = np.maximum(choice[token].double().cpu().numpy(), FORBIDDEN)  # (N, E)
        experts = []
        for _ in range(self.k):
            expert = assign(worth)  # (N,)
            # Where N is no multiple of E, a token may find no free place among its experts.
            is_allowed = np.take_along_axis(worth, expert[:, None], 1)[:, 0] > FORBIDDEN
            expert = np.where(is_allowed, expert, worth.argmax(1))
            np.put_along_axis(worth, expert[:, None], TAKEN, 1)
            experts.append(expert)
        chosen = torch.from_numpy(np.stack(experts, 1).ravel())
        return token.repeat_interleave(self.k), chosen.to(token.device)


def assign(worth: np.ndarray) -> np.ndarray:
    """The expert (N,) of every token in the assignment of largest worth (N, E) with at most ceil(N
    / E) tokens each.

    From each token's best expert on, one token after the other leaves an overfull expert, along the
    chain of moves that costs least: the successive shortest paths of a minimum-cost flow, over E
    nodes.
    """
    num_tokens, num_experts = worth.shape
    room = -(-num_tokens // num_experts)
    stale = list(range(num_experts))
    expert = worth.argmax(1)
    cost = np.full((num_experts, num_experts), np.inf)
    mover = np.zeros((num_experts, num_experts), np.int64)
    while (load := np.bincount(expert, minlength=num_experts)).max(initial=0) > room:
        # what the cheapest token of expert i costs on its way to every other
        for i in stale:
            members = np.flatnonzero(expert == i)
            loss = (
                worth[members, i, None] - worth[members]
                if len(members)
                else np.full((1, num_experts), np.inf)
            )
            mover[i] = members[loss.argmin(0)] if len(members) else 0
            cost[i] = loss.min(0)
        stale = _cheapest_chain(cost, load, room)
        for i, j in zip(stale[1:], stale[:-1], strict=True):
            expert[mover[i, j]] = j
    return expert


def _cheapest_chain(cost: np.ndarray, load: np.ndarray, room: int) -> list[int]:
    """Experts from one with a free place back to an overfull one
    (Bellman-Ford from all overfull ones).
    """
    every = np.arange(len(load))
    distance = np.where(load > room, 0.0, np.inf)
    before = np.full(len(load), -1)
    for _ in every:
        through = distance[:, None] + cost
        nearest = through.argmin(0)
        better = through[nearest, every] < distance - 1e-9
        if not better.any():
            break
        distance = np.where(better, through[nearest, every], distance)
        before = np.where(better, nearest, before)
    chain = [int(np.where(load < room, distance, np.inf).argmin())]
    while before[chain[-1]] >= 0:
        chain.append(int(before[chain[-1]]))
    return chain
