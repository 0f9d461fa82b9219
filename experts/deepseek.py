"""DeepSeekMoE's layout: fine-grained experts, of which K_s are shared: they serve every token,
without gate or router.

    y = sum_(i=1..Ks) FFN_i(x) + sum_(i=Ks+1..mN) g_i FFN_i(x),
        m K - Ks of the m N - Ks routed ones for each token

Total and active parameters stay those of the coarse layout with the same N, K and F. Dai et al.
2024, arXiv 2401.06066, section 3.2, eq. 9-11. The shared experts are one network of K_s times the
width, as in the official code.
"""

from torch import Tensor

from app.registry import register, require
from experts.contract import FeedForward, Routed, require_pool, segment


@register("experts")
class DeepSeek(Routed):
    """Fine-grained experts, some of which are shared: they serve every token.

    Args:
        num_experts: N, before the segmentation.
        top_k: K, before the segmentation; in 1..num_experts.
        hidden_dim: F, before the segmentation.
        segments: m, parts that every expert is split into; divides `hidden_dim`.
        num_shared: Ks, shared experts, counted in segments; in 0..segments * top_k - 1.

    Raises:
        ValueError: a knob is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_experts: int,
        top_k: int,
        hidden_dim: int,
        segments: int,
        num_shared: int,
    ) -> None:
        require_pool(num_experts, top_k, segments)
        width = segment(hidden_dim, segments)
        allowed = f"must be in 0..{segments * top_k - 1}, segments * top_k - 1"
        require("num_shared", num_shared, 0 <= num_shared < segments * top_k, allowed)
        super().__init__(
            dim, segments * num_experts - num_shared, segments * top_k - num_shared, width
        )
        self.common = FeedForward(dim, num_shared * width) if num_shared else None

    def shared(self, x: Tensor) -> Tensor | None:
        return None if self.common is None else self.common(x)  # (T, D)
