"""Fine-grained experts: every coarse expert is split into m segments, and m times as many are
activated.

    m N experts of width F / m, m K of them for each token

Total and active parameters stay those of the coarse layout with the same N, K and F, while the
number of combinations grows. DeepSeekMoE (Dai et al. 2024, arXiv 2401.06066, section 3.1, eq. 6-8).
"""

from app.registry import register
from experts.contract import Routed, require_pool, segment


@register("experts")
class FineGrained(Routed):
    """The experts of the coarse layout, each split into m.

    Args:
        num_experts: N, before the segmentation.
        top_k: K, before the segmentation; in 1..num_experts.
        hidden_dim: F, before the segmentation.
        segments: m, parts that every expert is split into; divides `hidden_dim`.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self, dim: int, *, num_experts: int, top_k: int, hidden_dim: int, segments: int
    ) -> None:
        require_pool(num_experts, top_k, segments)
        width = segment(hidden_dim, segments)
        super().__init__(dim, segments * num_experts, segments * top_k, width)
