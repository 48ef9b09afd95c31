"""The properties of a GPU by its compiler's name for it (gfx942, sm_90); kernels/common.h decides the same."""

import re


def warp_size(target: str) -> int:
    """Lanes of a warp: 64 on gfx9 (CDNA and older), 32 on RDNA and NVIDIA."""
    return 64 if target.startswith("gfx9") else 32


def has_bf16(target: str) -> bool:
    """Whether the GPU has a matrix unit for bf16 that common.h has a tile for."""
    if target.startswith("sm_"):
        return int(target[3:].rstrip("a")) >= 80
    return re.fullmatch(r"gfx(90a|94[0-2]|950|11\w\w|12\w\w)", target) is not None


def has_tf32(target: str) -> bool:
    """Whether the GPU's matrix unit takes float32 rounded to tf32, as NVIDIA's do."""
    return target.startswith("sm_") and has_bf16(target)


def has_wgmma(target: str) -> bool:
    """Whether the GPU has Hopper's matrix instruction for four warps, which kernels/wgmma.h is about."""
    return target.startswith("sm_90")
