"""Every SwiGLU expert on its own rows, by the kernel of the device."""

import torch
from torch import Tensor

from experts.grouped.cpu import bmm_swiglu
from experts.grouped.cuda import grouped_mm_swiglu
from experts.grouped.device import autocast_dtype, is_native


def swiglu(x: Tensor, ends: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """Outputs (R, D) in the autocast dtype; zeros after `ends[-1]`.

    Args:
        x: (R, D) sorted by expert.
        ends: (E,) int32, where the rows of an expert end.
        w_in: (E, D, 2F), gate and up projection side by side.
        w_out: (E, F, D).
    """
    dtype = autocast_dtype(x)
    wide = dtype if x.is_cuda or is_native(dtype) else torch.float32
    kernel = grouped_mm_swiglu if x.is_cuda and wide != torch.float64 else bmm_swiglu
    return kernel(x.to(wide), ends, w_in.to(wide), w_out.to(wide)).to(dtype)
