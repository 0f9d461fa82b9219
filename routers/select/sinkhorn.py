"""Sinkhorn: in training, top-k on a matrix whose rows and columns were made to sum alike; plain
top-k in evaluation.

    A = scores;  repeat: scale the columns to sum N / E, then the rows to sum 1   (N valid tokens)

Clark et al. 2022, arXiv 2202.01169, section 3 ("S-BASE"); Megatron-LM's `sinkhorn` balancing. They
start from exp(logits): softmax scores are that up to a factor for each row, which the scaling takes
out, so with softmax the result is the same. A fixed number of rounds instead of a tolerance: no
wait for the device. The gates come from the plain scores. Balancing a batch looks at later tokens,
so training is not causal.
"""

import torch
from torch import Tensor

from app.registry import register, require
from routers.contract import Activated, Context, Sizes
from routers.select.top_k import TopK


@register("select")
class Sinkhorn(TopK):
    """Takes the k best experts, in training by scores that were balanced over the batch.

    Args:
        k: experts per token; in 1..num_experts.
        rounds: of scaling columns and rows; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    causal = "eval"
    scope = "batch"
    eval_scope = "token"

    def __init__(self, sizes: Sizes, *, k: int, rounds: int) -> None:
        super().__init__(sizes, k=k)
        require("rounds", rounds, rounds >= 1, "must be at least 1")
        self.rounds = rounds

    def forward(
        self, activated: Activated, choice: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        if self.training:
            balanced = self._balance(
                choice.clamp_min(1e-30).log(), context.valid.flatten()[:, None]
            )
            choice = balanced.masked_fill(choice == -torch.inf, -torch.inf)
        return super().forward(activated, choice, context)

    def _balance(self, log_a: Tensor, valid: Tensor) -> Tensor:
        """log A (T, E) with even columns over the valid tokens; padding takes part in nothing."""
        share = (valid.sum().clamp_min(1) / log_a.size(1)).log()
        for _ in range(self.rounds):
            # (E,); finite even where all is padding
            columns = log_a.masked_fill(~valid, -1e30).logsumexp(0)
            log_a = log_a - columns + share
            log_a = log_a - log_a.logsumexp(1, keepdim=True)
        return log_a
