"""Every expert on its own rows, by the kernel of the device:
a whole SwiGLU network, or one product.
"""

import torch
from torch import Tensor

from experts.grouped.bmm import bmm_product, bmm_swiglu
from experts.grouped.device import autocast_dtype, is_native
from experts.grouped.grouped_mm import grouped_mm_product, grouped_mm_swiglu


def swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """Outputs (R, D) in the autocast dtype; zeros after `ends[-1]`.

    Args:
        x: (R, D) sorted by expert.
        ends: (E,) int32, where the rows of an expert end.
        w_in: (E, D, 2F), gate and up projection side by side.
        w_out: (E, F, D).
    """
    dtype, wide, in_groups = _dtypes(x)
    kernel = grouped_mm_swiglu if in_groups else bmm_swiglu
    return kernel(x.to(wide), ends, w_in.to(wide), w_out.to(wide)).to(dtype)


def product(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """Rows (R, N) in the autocast dtype, each times the matrix of its expert; zeros after
    `ends[-1]`.

    Args:
        x: (R, D) sorted by expert.
        ends: (E,) int32, where the rows of an expert end.
        weight: (E, D, N).
    """
    dtype, wide, in_groups = _dtypes(x)
    kernel = grouped_mm_product if in_groups else bmm_product
    return kernel(x.to(wide), ends, weight.to(wide)).to(dtype)


def _dtypes(x: Tensor) -> tuple[torch.dtype, torch.dtype, bool]:
    """The dtype of the outputs, that of the computation,
    and whether torch multiplies it in groups on this device.
    """
    dtype = autocast_dtype(x)
    wide = dtype if x.is_cuda or is_native(dtype) else torch.float32
    return dtype, wide, x.is_cuda and wide == torch.bfloat16
