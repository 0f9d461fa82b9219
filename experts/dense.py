"""No routing: one feed-forward network serves every token, the baseline of every comparison."""

from torch import Tensor

from app.registry import register, require
from experts.contract import Experts, FeedForward


@register("experts")
class Dense(Experts):
    """One feed-forward network for every token, without a router.

    Args:
        hidden_dim: F, width of the network; at least 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    num_experts = 0
    top_k = 0

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        require("hidden_dim", hidden_dim, hidden_dim >= 1, "must be at least 1")
        self.common = FeedForward(dim, hidden_dim)

    def shared(self, x: Tensor) -> Tensor:
        return self.common(x)  # (T, D)
