"""What the grouped computation asks of the device it runs on."""

import torch
from torch import Tensor


def on_host(x: Tensor) -> bool:
    """Whether sizes may depend on values:
    reading them costs nothing on the CPU, outside of a compiled graph.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@torch.compiler.assume_constant_result
def is_native(dtype: torch.dtype) -> bool:
    """Return whether this CPU has instructions that multiply in `dtype`; emulated, bfloat16 is
    slower than float32.

    oneDNN reports bfloat16 as supported on every CPU with AVX-512, but emulates it with conversions
    to float32 if the instructions are missing (Skylake, Ice Lake); without AVX-512 it is 100 times
    slower. Arm CPUs were not measured and count as not native.
    """
    needed = {
        torch.bfloat16: ("amx_bf16", "avx512_bf16"),
        torch.float16: ("amx_fp16", "avx512_fp16"),
    }
    if dtype not in needed:
        return True
    return any(torch.cpu.get_capabilities().get(name, False) for name in needed[dtype])


@torch.compiler.assume_constant_result
def has_amx() -> bool:
    """Return whether this CPU multiplies tiles in bfloat16, several times faster than vectors."""
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products with x have: autocast's, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
