"""What an activation promises: it stands between the two matrices of every network of a model,
routed or shared.
"""

from typing import ClassVar

from torch import Tensor, nn


class Activation(nn.Module):
    """What stands between the two matrices of a network;
    it decides how many columns the first one has.
    """

    # of the first matrix, for each hidden unit
    columns: ClassVar[int] = 2
    # whether both products have a bias
    bias: bool = False

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, F) of the first product (R, columns * F)."""
        raise NotImplementedError

    def fused(self, x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor | None:
        """Both products of stacked networks in one kernel, as `grouped.swiglu`;
        None where there is none.
        """
        return None
