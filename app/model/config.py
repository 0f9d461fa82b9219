"""The sizes of the transformer, as the config group `model` states them."""

from dataclasses import dataclass
from typing import Literal

from app.registry import require


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
    qk_norm: Literal["none", "head", "all"]
    qkv_bias: bool
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
        heads = self.num_heads
        groups = self.num_kv_heads
        if self.head_dim is None:
            require(
                "dim",
                self.dim,
                self.dim % (2 * heads) == 0,
                f"must be divisible by 2 * num_heads = {2 * heads}",
            )
        even = self.head_width > 0 and self.head_width % 2 == 0
        require("head_dim", self.head_dim, even, "must be even and positive, or null")
        require(
            "num_heads", heads, heads % groups == 0, f"must be divisible by num_kv_heads={groups}"
        )
        require("first_dense", self.first_dense, self.first_dense >= 0, "must be at least 0")
        layers = self.moe_layers
        allowed = layers is None or all(0 <= i < self.num_layers for i in layers)
        require(
            "moe_layers", layers, allowed, f"must be layers in 0..{self.num_layers - 1}, or null"
        )
        require("init_std", self.init_std, self.init_std > 0, "must be positive")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    def is_moe(self, layer: int) -> bool:
        """Whether layer 0 .. num_layers-1 holds experts: those in `moe_layers`, or every
        `moe_every`-th after the first `first_dense`.
        """
        if self.moe_layers is not None:
            return layer in self.moe_layers
        return layer >= self.first_dense and (layer - self.first_dense + 1) % self.moe_every == 0
