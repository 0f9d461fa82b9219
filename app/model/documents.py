"""Attention that stays inside a document: which positions may look at which, in the form that the
device computes fast.

With any mask torch's attention computes all S x S products on CUDA, in a slow kernel. FlexAttention
(Dong et al. 2024, arXiv 2412.05496) leaves out the blocks of positions that have no document in
common.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # positions of a block
NARROWEST = 16  # head that FlexAttention takes

# None: causal over the whole row
Mask = Tensor | BlockMask | None


def document_mask(document: Tensor, head_dim: int, dtype: torch.dtype) -> Mask:
    """Lets each position of document (B, S) look at those of its document that are not later.

    Where it is a matrix, it is one of the queries' `dtype`: of bools every layer would make one,
    and keep it.
    """
    if document.is_cuda and head_dim >= NARROWEST:
        return block_mask(document)
    allowed = dense_mask(document)
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -torch.inf)


def dense_mask(document: Tensor) -> Tensor:
    """(B, 1, S, S) bool, True where a position may look."""
    same = document[:, :, None] == document[:, None, :]
    return same.tril()[:, None]


def block_mask(document: Tensor) -> BlockMask:
    """The same, with the blocks of positions whose ranges of document numbers meet;
    no S x S matrix is made.
    """
    length = document.size(1)
    num_blocks = math.ceil(length / BLOCK)
    places = torch.arange(num_blocks * BLOCK, device=document.device).clamp(max=length - 1)
    low, high = document[:, places].unflatten(1, (-1, BLOCK)).aminmax(dim=-1)  # (B, N)
    # The ranges of two blocks meet where each begins before the other ends.
    meet = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])  # (B, N, N)
    meet = meet.tril()
    # For each block of queries, the blocks of keys that it meets come first.
    order = meet.int().argsort(dim=-1, descending=True, stable=True).int()

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[row, query] == document[row, key])

    number = meet.sum(-1, dtype=torch.int32)
    return BlockMask.from_kv_blocks(
        number[:, None],
        order[:, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=allowed,
        seq_lengths=(length, length),
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Attention (B, heads, S, H); fewer heads of key and value than of
    query are shared among those (2305.13245).
    """
    shared = key.size(1) < query.size(1)
    if isinstance(mask, BlockMask):
        return _compiled()(query, key, value, block_mask=mask, enable_gqa=shared)
    return functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, enable_gqa=shared
    )


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
