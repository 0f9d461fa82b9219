"""The decoder-only transformer that the experts are plugged into.

Pre-norm blocks with RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), rotary positions (Su et al. 2021, arXiv
2104.09864), grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) and SwiGLU (arXiv 2002.05202).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from app.loss import token_nll
from app.registry import require
from routers.balancer import Balancer
from routers.contract import Context, Routing
from routers.router import Router


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the transformer; the layers of experts are described elsewhere.

    Raises:
        ValueError: a size is out of range, or does not divide another.
    """

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int | None
    hidden_dim: int
    first_dense: int
    moe_every: int
    moe_layers: list[int] | None
    vocab_size: int | None
    tie_embeddings: bool
    cross_documents: bool
    rope_theta: float
    norm_eps: float
    init_std: float
    activation_checkpointing: bool

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads", "num_kv_heads", "hidden_dim", "moe_every"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "must be at least 1")
        heads, groups = self.num_heads, self.num_kv_heads
        if self.head_dim is None:
            require("dim", self.dim, self.dim % (2 * heads) == 0, f"must be divisible by 2 * num_heads = {2 * heads}")
        even = self.head_width > 0 and self.head_width % 2 == 0
        require("head_dim", self.head_dim, even, "must be even and positive, or null")
        require("num_heads", heads, heads % groups == 0, f"must be divisible by num_kv_heads={groups}")
        require("first_dense", self.first_dense, self.first_dense >= 0, "must be at least 0")
        layers = self.moe_layers
        allowed = layers is None or all(0 <= i < self.num_layers for i in layers)
        require("moe_layers", layers, allowed, f"must be layers in 0..{self.num_layers - 1}, or null")
        require("init_std", self.init_std, self.init_std > 0, "must be positive")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    def is_moe(self, layer: int) -> bool:
        """Whether layer 0 .. num_layers-1 holds experts: those in `moe_layers`, or every `moe_every`-th after the first
        `first_dense`.
        """
        if self.moe_layers is not None:
            return layer in self.moe_layers
        return layer >= self.first_dense and (layer - self.first_dense + 1) % self.moe_every == 0


class Where(NamedTuple):
    """What every layer needs to know of the positions of a batch."""

    context: Context
    mask: Tensor | None  # (B, 1, S, S) bool, True where a position may look; None: causal over the whole row
    cos: Tensor  # (S, H) of the rotary angles, H the width of a head
    sin: Tensor


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_width
        self.sizes = [heads * self.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        self.qkv = nn.Linear(config.dim, sum(self.sizes), bias=False)
        self.out = nn.Linear(self.sizes[0], config.dim, bias=False)

    def forward(self, x: Tensor, where: Where) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(x).split(self.sizes, -1)
        )  # (B, heads, S, H)
        query, key = rotate(query, where), rotate(key, where)
        y = functional.scaled_dot_product_attention(
            query, key, value, where.mask, is_causal=where.mask is None, enable_gqa=key.size(1) < query.size(1)
        )
        return self.out(y.transpose(1, 2).flatten(2))  # (B, S, D)


def rotate(x: Tensor, where: Where) -> Tensor:
    """Rotary positions for x (B, heads, S, H): each pair (i, i + H/2) turned by its angle."""
    left, right = x.chunk(2, -1)
    return x * where.cos.to(x.dtype) + torch.cat((-right, left), -1) * where.sin.to(x.dtype)


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, ffn: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ffn = ffn

    def forward(self, x: Tensor, where: Where) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.attention_norm(x), where)
        inner = self.ffn_norm(x)
        y, routing = self.ffn(inner, where.context)
        return x + y, routing


class Transformer(nn.Module):
    """Embedding, blocks, head; it owns what all its layers share: the scores' common part and the balance terms.

    `ffns` are the feed-forward parts of all layers, each mapping (x, context) to (y, Routing or None).
    """

    def __init__(self, config: ModelConfig, ffns: list[nn.Module], balancer: Balancer, vocab_size: int) -> None:
        super().__init__()
        self.config, self.balancer = config, balancer
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, ffn) for ffn in ffns)
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        routers = self.routers()
        self.shared_score = None
        if routers:
            self.shared_score = routers[0].score.shared()
            balancer.fits(routers[0].score)
        self._initialize(config.init_std)

    @property
    def num_experts(self) -> int:
        """E of the MoE layers; 0 for a dense model."""
        routers = self.routers()
        return routers[0].num_experts if routers else 0

    def routers(self) -> list[Router]:
        """The routers of the MoE layers, from the bottom up."""
        return [module for module in self.modules() if isinstance(module, Router)]

    @torch.no_grad()
    def _initialize(self, std: float) -> None:
        """Draws every matrix from N(0, std^2); routers keep the initial values that their own classes chose."""
        own = {p for router in self.routers() for p in router.parameters()}
        own |= set(self.shared_score.parameters()) if self.shared_score else set()
        for parameter in self.parameters():
            if parameter.dim() >= 2 and parameter not in own:
                parameter.normal_(0, std)

    def forward(
        self, tokens: Tensor, targets: Tensor, valid: Tensor, document: Tensor, seed: int = 0
    ) -> tuple[Tensor, list[Routing]]:
        """Negative log-likelihood in nats of every target (B, S) float32, and the routings of the MoE layers.

        Args:
            tokens: (B, S) int64.
            targets: (B, S) int64, -100 where nothing is to be predicted; the likelihood is 0 there.
            valid: (B, S) bool, False on padding.
            document: (B, S) int64; positions with different numbers do not see each other.
            seed: of this micro-batch; noise in layer l is drawn from (seed, l).
        """
        hidden, routings = self.hidden(tokens, valid, document, seed)
        return token_nll(hidden, self.head.weight, targets), routings

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits (B, S, V) of tokens (B, S) that are one document a row."""
        hidden, _ = self.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
        return self.head(hidden)

    def hidden(self, tokens: Tensor, valid: Tensor, document: Tensor, seed: int = 0) -> tuple[Tensor, list[Routing]]:
        """The normed output of the last block (B, S, D), and the routings of the MoE layers."""
        x = self.embedding(tokens)
        cos, sin = rotary(tokens.size(1), self.config, tokens.device)
        mask = None if self.config.cross_documents else document_mask(document)
        context = Context(valid, tokens.flatten(), shared=self.shared_score)
        offset = self.balancer.offset()
        routings: list[Routing] = []
        for block in self.blocks:
            layer = len(routings)
            context = context._replace(
                state=routings[-1].state if routings else None,
                offset=0.0 if offset is None or layer == len(offset) else offset[layer],
                seed=seed * 1_000 + layer,
            )
            x, routing = self._run(block, x, Where(context, mask, cos, sin))
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings

    def _run(self, block: nn.Module, x: Tensor, where: Where) -> tuple[Tensor, Routing | None]:
        if self.config.activation_checkpointing and self.training:
            return checkpoint(block, x, where, use_reentrant=False)
        return block(x, where)


def rotary(length: int, config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (S, H) of the rotary angles; only differences of positions act, so a row counts from 0."""
    width = config.head_width
    speed = config.rope_theta ** -(torch.arange(0, width, 2, device=device) / width)  # (H/2,)
    angle = torch.arange(length, device=device)[:, None] * speed.repeat(2)  # (S, H)
    return angle.cos(), angle.sin()


def document_mask(document: Tensor) -> Tensor:
    """Which positions a position may look at (B, 1, S, S): those of its document that are not later."""
    same = document[:, :, None] == document[:, None, :]
    return same.tril()[:, None]
