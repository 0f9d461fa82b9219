"""What a model costs: parameters and floating-point operations per token, before anything is trained.

    forward = 2 (active matrix parameters) + 4 L_all D S      training = 3 forward

Active parameters are those that a token meets: everything but the experts that were not chosen for it; of these, matrices
are multiplied with every token, except the embedding, which is looked up. The second term is attention over a full row
of S positions, without the causal half, as in DeepSeekMoE's tables (arXiv 2401.06066).
"""

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import nn

from app.moe import MoE
from app.transformer import Transformer


@dataclass(frozen=True)
class Budget:
    """Parameters (numbers) and FLOPs (per token) of a model on rows of a given length."""

    total_params: int
    active_params: int
    embedding_params: int
    expert_params: int
    router_params: int
    flops_per_token_forward: float

    @classmethod
    def of(cls, model: Transformer, seq_len: int) -> "Budget":
        """Counts a model, which may lie on the meta device."""
        layers = [module for module in model.modules() if isinstance(module, MoE)]
        routed = [layer.experts.expert_params() for layer in layers]
        chosen = [(layer.router.select.k or layer.experts.top_k) / layer.experts.num_experts for layer in layers]
        idle = sum(sum(each) * (1 - share) for each, share in zip(routed, chosen, strict=True))
        total, embedding = _count(model), _count(model.embedding)
        active = round(total - idle)
        looked_up = 0 if model.config.tie_embeddings else embedding
        vectors = sum(p.numel() for p in model.parameters() if p.dim() < 2)
        attention = 4 * model.config.num_layers * model.config.dim * seq_len
        return cls(
            total_params=total,
            active_params=active,
            embedding_params=embedding,
            expert_params=sum(map(sum, routed)),
            router_params=sum(map(_count, model.routers())) + (_count(model.shared_score) if model.shared_score else 0),
            flops_per_token_forward=2 * (active - looked_up - vectors) + attention,
        )

    @property
    def flops_per_token_train(self) -> float:
        """Forward and backward."""
        return 3 * self.flops_per_token_forward

    def summary(self) -> dict[str, Any]:
        """The keys of `summary.json` that are known before training."""
        return {
            "total_params": self.total_params,
            "active_params": self.active_params,
            "flops_per_token_train": self.flops_per_token_train,
        }

    def table(self) -> Table:
        """For the terminal."""
        table = Table("what", "number", "share of total", title="Budget")
        for name in ("total", "active", "expert", "router", "embedding"):
            number = getattr(self, f"{name}_params")
            table.add_row(f"{name} parameters", f"{number:,}", f"{number / self.total_params:.1%}")
        table.add_row("FLOPs per token, training", f"{self.flops_per_token_train:,.0f}", "")
        table.caption = "FLOPs = 3 * (2 * active matrix parameters + 4 * layers * dim * seq_len)"
        return table


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
