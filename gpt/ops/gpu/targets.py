"""The properties of a GPU by its compiler's name for it (gfx942, sm_90); kernels/common.h decides the same."""

import re

# GCN 5 and CDNA, RDNA 1 and 2, RDNA 3 and 3.5, RDNA 4. Older GPUs have other widths of a warp than common.h says, and
# later ones other matrix instructions.
AMD = re.compile(r"gfx(9(0[0-9a-c]|4[0-2]|50)|10[13]\d|11[05]\d|120[01])")
OLDEST_NVIDIA = 70  # sm_70, Volta: the oldest that CuPy's wheels know


def unsupported(target: str) -> str:
    """Why there are no kernels for a GPU, as the rest of a sentence that begins with the GPU; "" if there are some."""
    if target.startswith("sm_"):
        too_old = int(target[3:].rstrip("a")) < OLDEST_NVIDIA
        return f"is too old: {target}, and sm_{OLDEST_NVIDIA} is the least" if too_old else ""
    return "" if AMD.fullmatch(target) else f"is a {target}, for which hipgpt has no kernels"


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


def shared_bytes(target: str) -> int:
    """Bytes of shared memory that a block may ask for on an NVIDIA GPU with a matrix unit (CUDA's guide, "Technical
    specifications"): 99 KiB on consumers' GPUs and unknown ones.
    """
    kib = {"sm_80": 163, "sm_87": 163, "sm_90": 227, "sm_100": 227, "sm_103": 227, "sm_110": 227}
    return kib.get(target.rstrip("a"), 99) * 1024
