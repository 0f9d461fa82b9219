"""What the grouped computation asks of the device it runs on."""

import torch
from torch import Tensor


def on_host(x: Tensor) -> bool:
    """Whether sizes may depend on values: reading them costs nothing on the CPU, outside of a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@torch.compiler.assume_constant_result
def is_native(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of that dtype; without AVX-512 torch takes 100 times longer in bfloat16."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype != torch.float16 or torch.ops.mkldnn._is_mkldnn_fp16_supported()


@torch.compiler.assume_constant_result
def has_amx() -> bool:
    """Whether this CPU multiplies tiles in bfloat16, several times faster than vectors."""
    return torch.cpu._is_amx_tile_supported()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products with x have: autocast's, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
