"""Causal self-attention with rotary positions (Su et al. 2021, arXiv 2104.09864) and grouped
queries (2305.13245).

Queries and keys may be normed before the rotation, which keeps their products small (Dehghani et
al. 2023, arXiv 2302.05442): each head by itself (Qwen3, arXiv 2505.09388) or all heads together
(OLMoE, arXiv 2409.02060).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from app.model.config import ModelConfig
from app.model.documents import Mask, attend
from experts.matrix import MatrixLayout
from routers.contract import Context

# positions: a text that grows token by token needs few tables of angles
ROUNDED = 256


class Positions(NamedTuple):
    """What every layer needs to know of the positions of a batch."""

    context: Context
    mask: Mask  # where a position may look
    cos: Tensor  # (S, H) of the rotary angles, H the width of a head
    sin: Tensor
    # Puts the keys and values of earlier positions before a layer's own; None: there are none.
    extended: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_width
        query_size = config.num_heads * self.head_dim
        key_size = config.num_kv_heads * self.head_dim
        self.sizes = [query_size, key_size, key_size]
        self.qkv = nn.Linear(config.dim, sum(self.sizes), bias=config.qkv_bias)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)
        self.out = nn.Linear(self.sizes[0], config.dim, bias=False)
        self.norm_heads = config.qk_norm == "head"
        self.query_norm = self._norm(config, query_size)
        self.key_norm = self._norm(config, key_size)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        query, key, value = self.qkv(x).split(self.sizes, -1)  # (B, S, heads * H)
        query = self._heads(query, self.query_norm)
        key = self._heads(key, self.key_norm)
        query = rotate(query, positions)
        key = rotate(key, positions)
        value = self._heads(value, nn.Identity())
        if positions.extended is not None:
            key, value = positions.extended(key, value)
        y = attend(query, key, value, positions.mask)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, S, D)

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        """Return the axis and size of the heads in each weight."""
        heads = self.head_dim
        return {
            "qkv.weight": MatrixLayout(-2, tuple(self.sizes), unit=heads),
            "out.weight": MatrixLayout(-1, (self.sizes[0],), unit=heads),
        }

    def _norm(self, config: ModelConfig, size: int) -> nn.Module:
        """The norm of queries or keys, over one head or over all of them together."""
        if config.qk_norm == "none":
            return nn.Identity()
        width = self.head_dim if self.norm_heads else size
        return nn.RMSNorm(width, config.norm_eps)

    def _heads(self, x: Tensor, norm: nn.Module) -> Tensor:
        """(B, heads, S, H) of x (B, S, heads * H), normed before or after it is cut into heads."""
        if not self.norm_heads:
            x = norm(x)
        x = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return norm(x) if self.norm_heads else x


def rotate(x: Tensor, positions: Positions) -> Tensor:
    """Rotary positions for x (B, heads, S, H): each pair (i, i + H/2) turned by its angle."""
    left, right = x.chunk(2, -1)
    cos = positions.cos.to(x.dtype)
    sin = positions.sin.to(x.dtype)
    return x * cos + torch.cat((-right, left), -1) * sin


def rotary(
    stop: int, width: int, theta: float, device: torch.device, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (S, H) of the rotary angles of positions start to stop - 1.

    Only the differences of positions act.
    """
    length = math.ceil(stop / ROUNDED) * ROUNDED
    cos, sin = _angles(length, width, theta, device)
    return cos[start:stop], sin[start:stop]


# What validation computes in inference mode, training uses.
@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _angles(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    speed = theta ** -(torch.arange(0, width, 2, device=device) / width)  # (H/2,)
    angle = torch.arange(length, device=device)[:, None] * speed.repeat(2)  # (S, H)
    return angle.cos(), angle.sin()
