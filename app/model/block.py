"""A block of the transformer: attention and a feed-forward part, each behind a norm,
added to the residual stream.
"""

from torch import Tensor, nn

from app.model.attention import Attention, Positions
from app.model.config import ModelConfig
from app.model.moe import MoE
from experts.mixture import Mixture
from routers.assignments import acting, gates
from routers.contract import Routing


class Block(nn.Module):
    """Attention, then a feed-forward part that may be routed."""

    def __init__(self, config: ModelConfig, ffn: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ffn = ffn

    def forward(self, x: Tensor, positions: Positions) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.attention_norm(x), positions)
        inner = self.ffn_norm(x)
        y, routing = self.ffn(inner, positions.context)
        return x + y, routing


class BlockOfExperts(Block):
    """A block whose experts act on its attention, too: the router sees what the attention sees."""

    ffn: MoE

    def __init__(self, config: ModelConfig, ffn: MoE, mixture: Mixture) -> None:
        super().__init__(config, ffn)
        mixture.adapt(self.attention)
        self.under = mixture.under

    def forward(self, x: Tensor, positions: Positions) -> tuple[Tensor, Routing | None]:
        inner = self.attention_norm(x)
        routing = self.ffn.router(inner.flatten(0, 1), positions.context)
        acts = acting(routing, positions.context.alone)
        x = x + self.under(gates(acts), self.attention, inner, positions)
        return x + self.ffn.compute(self.ffn_norm(x), acts), routing


def block_of(config: ModelConfig, ffn: nn.Module) -> Block:
    """The block around a feed-forward part."""
    if isinstance(ffn, MoE) and isinstance(ffn.experts, Mixture) and ffn.experts.on_attention:
        return BlockOfExperts(config, ffn, ffn.experts)
    return Block(config, ffn)
