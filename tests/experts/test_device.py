"""Which CPUs multiply in bfloat16: the flags of real ones."""

from types import MappingProxyType

import pytest
import torch

from app.training.trainer import native_precision, uses_gpu
from experts.grouped.device import has_amx, is_native
from experts.grouped.planning import rows_worth_a_product

AVX512 = ("avx2", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni")
# flags, and whether it computes in bfloat16, in float16, and in tiles
CPUS = {
    "Haswell": (("avx2",), False, False, False),
    "Skylake, Ice Lake": (AVX512, False, False, False),
    "Cooper Lake, Zen 4": ((*AVX512, "avx512_bf16"), True, False, False),
    "Sapphire Rapids": (
        (*AVX512, "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
        True,
        True,
        True,
    ),
    "Graviton 3": (("neon", "sve", "bf16", "sve_bf16"), False, False, False),
}


@pytest.mark.parametrize("name", CPUS)
def test_a_dtype_is_native_where_the_cpu_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flags, bfloat16, float16, tiles = CPUS[name]
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: MappingProxyType(dict.fromkeys(flags, True))
    )
    assert is_native(torch.float32)
    assert is_native(torch.bfloat16) == bfloat16, (
        "oneDNN also calls bfloat16 supported where it emulates it"
    )
    assert is_native(torch.float16) == float16
    assert has_amx() == tiles
    assert native_precision("cpu") == ("bf16-mixed" if bfloat16 else "32-true")
    with torch.autocast("cpu", torch.bfloat16):
        pads = rows_worth_a_product(torch.zeros(4, 8), 10_000) > 0
    assert pads == bfloat16, (
        "experts are padded where small products in native bfloat16 are slow to start"
    )


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_that_emulates_bfloat16_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    """A T4 or V100: torch reports bfloat16 as supported if emulation counts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert native_precision("auto") == native_precision("gpu") == precision


def test_auto_is_the_gpu_where_torch_finds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert uses_gpu("auto") == there
        assert not uses_gpu("cpu")
