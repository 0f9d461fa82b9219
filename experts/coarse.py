"""Coarse experts: N copies of a feed-forward network, K of them for each token.

The layout of GShard (Lepikhin et al. 2020, arXiv 2006.16668, section 2.2), Switch (arXiv
2101.03961) and Mixtral (arXiv 2401.04088).
"""

from app.registry import register
from experts.contract import Routed


@register("experts")
class Coarse(Routed):
    """N equal experts, K of them for each token.

    Args:
        num_experts: N, at least 1.
        top_k: K, experts per token; in 1..num_experts.
        hidden_dim: F, width of an expert; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(self, dim: int, *, num_experts: int, top_k: int, hidden_dim: int) -> None:
        super().__init__(dim, num_experts, top_k, hidden_dim)
