"""What a model remembers of the positions before:
with it the next token costs one position, not all of them again.
"""

from collections import Counter

import torch
from torch import Tensor


class Past:
    """Keys and values of all layers, and which of the positions are no padding.

    A layer may be computed several times for the same positions, as under skills whose outputs are
    mixed: always as often and in the same order, so each time has keys and values of its own.
    """

    def __init__(self) -> None:
        self.valid = torch.zeros(0, 0, dtype=torch.bool)  # (B, S of all positions)
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by layer and time
        self._times: Counter[int] = Counter()

    def see(self, valid: Tensor) -> None:
        """Positions valid (B, S) are computed next."""
        self.valid = torch.cat((self.valid, valid), 1) if self.valid.numel() else valid
        self._times.clear()

    def mask(self, length: int) -> Tensor:
        """(B, 1, length, S) bool: where the last `length` positions may look;
        padding looks at itself.
        """
        place = torch.arange(self.valid.size(1), device=self.valid.device)
        own = place[-length:, None]  # (length, 1)
        return ((place <= own) & self.valid[:, None] | (place == own))[:, None]

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, H) of a layer behind those of the positions before."""
        entry = layer, self._times[layer]
        self._times[layer] += 1
        if entry in self._kept:
            before = self._kept[entry]
            key = torch.cat((before[0], key), 2)
            value = torch.cat((before[1], value), 2)
        self._kept[entry] = key, value
        return key, value
