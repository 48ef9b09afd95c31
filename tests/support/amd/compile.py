"""Compile kernels for AMD GPUs, with no GPU and no ROCm at hand, and judge the machine code's use of the hardware.

There are two compilers: clang, and hiprtc, the compiler that CuPy calls on ROCm. clang is of version 19, or of 22 for a
target that 19 does not know. Version 5.2 of hiprtc is old and knows only two of the targets. The notes of a code object
say how many registers and how much shared memory each kernel takes.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from ctypes.util import find_library
from pathlib import Path
from typing import NamedTuple

from gpt.ops.gpu.targets import has_bf16

LLVM = 19
NEWER_LLVM = {"gfx950": 22}  # the version for a target that LLVM does not know
TARGETS = {
    "clang": ("gfx906", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1103", "gfx1151", "gfx1201"),
    "hiprtc": ("gfx90a", "gfx1030"),
}
# Targets whose fp32 kernels need no row of their own, because other targets have the same instructions for them and the
# same registers: gfx942 for gfx950, gfx1100 and gfx1030 for gfx1103
BF16_ALONE = ("gfx950", "gfx1103")
# GPUs with the instructions, registers and memory of a target in TARGETS. LLVM's AMDGPU.td has no difference between
# them but bugs of the hardware.
SISTERS = {
    "gfx1030": ("gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"),
    "gfx1100": ("gfx1101",),
    "gfx1103": ("gfx1102",),
    "gfx1201": ("gfx1200",),
}
# Targets whose kernels may spill and leave a SIMD idle, and why
TOLERATED = {"gfx906": "GCN 5 has half the registers of CDNA, so some kernels are slow there"}
LDS_LIMIT = 64 * 1024  # bytes that one workgroup may have, on every target
LEAST_WAVES = 2  # per SIMD: if there is only one, the SIMD is idle whenever that waits


class CompileError(Exception):
    """A compiler refused a source; the message is the compiler's own."""


class Processor(NamedTuple):
    """The hardware that the waves of a workgroup share: a compute unit of CDNA or a workgroup processor of RDNA.

    Both have 4 SIMDs. Registers, granules, waves and workgroups are those of LLVM's AMDGPUBaseInfo.cpp
    (getTotalNumVGPRs, getVGPRAllocGranule, getMaxWavesPerEU, getMaxWorkGroupsPerCU). AMDGPU.td's FeatureISAVersion… say
    which chip has which. The sizes of LDS and its granule are those of https://llvm.org/docs/AMDGPUUsage.html
    (GRANULATED_LDS_SIZE).
    """

    wave: int  # lanes of a wave
    vgprs: int  # vector registers of a SIMD's lane, for all its waves
    granule: int  # vector registers are handed out in multiples of this
    waves: int  # most waves that a SIMD can hold
    lds: int  # bytes
    workgroups: int  # most that the barrier unit can hold; a workgroup of a single wave needs no barrier
    lds_granule: int = 512  # bytes

    SIMDS = 4

    def waves_per_simd(self, vgprs: int, sgprs: int, lds: int, threads: int) -> float:
        """How many waves of a kernel each SIMD can hold at once, by the resources of one workgroup (LDS in bytes)."""
        waves = _blocks(threads, self.wave)
        per_simd = min(self.waves, self.vgprs // (_blocks(max(vgprs, 1), self.granule) * self.granule))
        if self.wave == 64:  # GCN and CDNA divide 800 scalar registers among the waves; RDNA gives 128 to each
            per_simd = min(per_simd, 800 // max(sgprs, 1))
        workgroups = per_simd * self.SIMDS // waves
        if waves > 1:
            workgroups = min(workgroups, self.workgroups)
        if lds:
            workgroups = min(workgroups, self.lds // (_blocks(lds, self.lds_granule) * self.lds_granule))
        return workgroups * waves / self.SIMDS


_GCN5 = Processor(wave=64, vgprs=256, granule=4, waves=10, lds=64 * 1024, workgroups=16)
_CDNA = Processor(wave=64, vgprs=512, granule=8, waves=8, lds=64 * 1024, workgroups=16)  # 2 and 3, AGPRs included
_RDNA2 = Processor(wave=32, vgprs=1024, granule=16, waves=16, lds=128 * 1024, workgroups=32)
_RDNA3 = Processor(wave=32, vgprs=1536, granule=24, waves=16, lds=128 * 1024, workgroups=32)  # FullVGPRs; RDNA 4 too
PROCESSORS = {
    "gfx906": _GCN5,
    "gfx90a": _CDNA,
    "gfx942": _CDNA,
    "gfx950": _CDNA._replace(lds=160 * 1024, lds_granule=1280),
    "gfx1030": _RDNA2,
    "gfx1100": _RDNA3,
    "gfx1103": _RDNA2,  # the small chips of RDNA 3 have no more registers than those of RDNA 2
    "gfx1151": _RDNA3,
    "gfx1201": _RDNA3,
}


class Argument(NamedTuple):
    """The place of an argument, in bytes, and its kind: "global_buffer" (a pointer), "by_value" or "hidden_…"."""

    offset: int
    size: int
    kind: str


class Kernel(NamedTuple):
    """One kernel of a code object, with the resources that it takes by its notes."""

    name: str
    target: str
    threads: int  # the largest workgroup that it was compiled for
    vgprs: int  # accumulation registers included
    agprs: int
    sgprs: int
    spills: int  # vector and scalar registers that had to be kept in memory
    lds: int  # bytes of a workgroup
    private: int  # bytes of memory for each thread: arrays that do not fit, or cannot be put, into registers
    dynamic_stack: bool
    moves: int  # instructions in loops that move values between accumulation and vector registers
    arguments: tuple[Argument, ...]

    @property
    def waves(self) -> float:
        """How many waves of it each SIMD can hold at once."""
        return PROCESSORS[self.target].waves_per_simd(self.vgprs, self.sgprs, self.lds, self.threads)

    @property
    def slowness(self) -> list[str]:
        """The faults of it that cost only time; empty if there are none."""
        found = []
        if self.spills:
            found.append(f"{self.spills} registers spilled")
        if self.private or self.dynamic_stack:
            found.append(f"{self.private or 'an unknown number of'} bytes of private memory a thread")
        if self.moves:
            found.append(f"{self.moves} moves between accumulation and vector registers in loops")
        if self.waves < LEAST_WAVES:
            found.append(f"{self.waves:g} waves per SIMD, under {LEAST_WAVES}")
        return found

    def complaints(self, asked_threads: int) -> list[str]:
        """The faults of it for a launch with `asked_threads` threads per block; empty if it is fit to be run."""
        found = [] if self.target in TOLERATED else self.slowness
        if self.threads != asked_threads:
            found.append(f"compiled for workgroups of {self.threads} threads, not of {asked_threads}")
        if self.lds > LDS_LIMIT:
            found.append(f"{self.lds} bytes of LDS, over the limit of {LDS_LIMIT}")
        return found


def tool(name: str, target: str = "") -> str:
    """A program of LLVM, such as "clang", as its package calls it, of a version that knows the target."""
    return f"{name}-{NEWER_LLVM.get(target, LLVM)}"


def missing(compiler: str, target: str = "") -> str | None:
    """Why `compiler` ("clang" or "hiprtc") cannot be used here, or not for `target`; None if it can."""
    for name in ("clang", "ld.lld", "llvm-readelf", "llvm-objdump"):
        if not shutil.which(tool(name, target)):
            packages = " ".join(tool(package, target) for package in ("clang", "lld", "llvm"))
            return f"{tool(name, target)} is absent (apt-get install {packages})"
    if compiler == "hiprtc" and not find_library("amdhip64"):
        return "hiprtc 5.2 is absent (apt-get install libamdhip64-5 libhiprtc-builtins5 rocm-device-libs)"
    return None


def compiler_version(compiler: str, target: str) -> str:
    """A text that is another one for every version of the compiler: clang's own words, or the names of libraries."""
    if compiler == "clang":
        return _run([tool("clang", target), "--version"], None, "clang").splitlines()[0]
    listed = _run(["ldconfig", "-p"], None, "ldconfig")
    paths = re.findall(r"=> (\S*/lib(?:amdhip64|amd_comgr|hiprtc-builtins)\.so\.\S+)$", listed, re.MULTILINE)
    return " ".join(sorted(Path(path).resolve().name for path in paths))


def compile_source(source: str, compiler: str, target: str, *options: str) -> bytes:
    """The code object of a whole source. Raises CompileError with the compiler's messages."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "kernel.hsaco"
        if compiler == "clang":
            command = [*clang_command(target), *options, "-", "-o", str(result)]
        else:  # in a process of its own, because it can crash
            command = [sys.executable, str(Path(__file__).with_name("hiprtc.py")), target, str(result), *options]
        _run(command, source, f"{compiler} for {target}")
        return result.read_bytes()


def compile_kernels(source: str, compiler: str, target: str) -> list[Kernel]:
    """The kernels of a source. Raises CompileError.

    clang does not link here: the notes are the same, and the driver then needs one process in place of three.
    """
    unlinked = ("-S", "-Xclang", "-emit-obj") if compiler == "clang" else ()
    return read_kernels(compile_source(source, compiler, target, *unlinked))


def asked_threads(source: str, wave: int) -> dict[str, int]:
    """{name: threads} for each `KERNEL(threads) name` of a source, as macros define `threads` for waves of `wave`."""
    target = next(target for target in PROCESSORS if PROCESSORS[target].wave == wave and has_bf16(target))
    expanded = _run([*clang_command(target), "-E", "-P", "-"], source, f"clang for {target}")
    declaration = r"amdgpu_flat_work_group_size\(1, ([^;{]*?)\)\)\)\s+void\s+(\w+)\("
    return {name: _product(threads) for threads, name in re.findall(declaration, expanded)}


def read_kernels(code: bytes) -> list[Kernel]:
    """The kernels of a code object, in the order of its notes."""
    with tempfile.NamedTemporaryFile(suffix=".hsaco") as file:
        file.write(code)
        file.flush()
        notes = _run([tool("llvm-readelf"), "-n", file.name], None, "llvm-readelf")
        target = re.search(r"amdhsa\.target:\s+\S*-(gfx\w+)", notes)[1]
        has_accumulators = re.search(r"\.agpr_count: +[1-9]", notes)
        listing = (
            _run([tool("llvm-objdump", target), "-d", file.name], None, "llvm-objdump") if has_accumulators else ""
        )
    # Every kernel is one item of a YAML list; its own keys are indented by 4, those of its arguments by more.
    items = re.split(r"^  - ", notes.split("amdhsa.kernels:")[1].split("amdhsa.target:")[0], flags=re.MULTILINE)[1:]
    moves = _moves_in_loops(listing)
    return [_kernel(item, target, moves) for item in items]


def _moves_in_loops(listing: str) -> dict[str, int]:
    """{kernel: v_accvgpr instructions between the target of a backward branch and the branch}, from a disassembly.

    Example: in the listing

        0000000000001900 <k>:
            v_accvgpr_write_b32 a0, v1       // 000000001900: …
            v_accvgpr_read_b32 v0, a0        // 000000001908: …
            s_cbranch_scc1 65533             // 000000001910: … <k+0x8>

    the loop goes from 0x1908 to 0x1910, and k has 1.
    """
    found = {}
    for start, name, body in re.findall(r"^([0-9a-f]+) <(\w+)>:\n(.*?)(?=^[0-9a-f]+ <|\Z)", listing, re.M | re.S):
        loops = [
            (int(start, 16) + int(offset or "0", 16), int(branch, 16))
            for branch, offset in re.findall(rf"s_c?branch.*// ([0-9A-F]+):.*<{name}(?:\+0x([0-9a-f]+))?>$", body, re.M)
        ]
        moves = [int(address, 16) for address in re.findall(r"v_accvgpr_.*// ([0-9A-F]+):", body)]
        found[name] = sum(any(first <= move < last for first, last in loops) for move in moves)
    return found


def _kernel(item: str, target: str, moves: dict[str, int]) -> Kernel:
    field = dict(re.findall(r"^    \.(\w+):\s+(\S+)$", "    " + item, re.MULTILINE))
    arguments = re.findall(r"\.offset:\s+(\d+)\n\s+\.size:\s+(\d+)\n\s+\.value_kind:\s+(\w+)", item)
    return Kernel(
        name=field["name"],
        target=target,
        threads=int(field["max_flat_workgroup_size"]),
        vgprs=int(field["vgpr_count"]),
        agprs=int(field.get("agpr_count", 0)),
        sgprs=int(field["sgpr_count"]),
        spills=int(field["vgpr_spill_count"]) + int(field["sgpr_spill_count"]),
        lds=int(field["group_segment_fixed_size"]),
        private=int(field["private_segment_fixed_size"]),
        dynamic_stack=field.get("uses_dynamic_stack") == "true",
        moves=moves.get(field["name"], 0),
        arguments=tuple(Argument(int(offset), int(size), kind) for offset, size, kind in arguments),
    )


def clang_command(target: str) -> list[str]:
    """A command with the options of CuPy and hiprtc: C++17, optimized, denormals flushed. Warnings are errors."""
    options = "-x hip --cuda-device-only --no-gpu-bundle-output -nogpulib -nogpuinc -std=c++17 -O3 -Wall -Werror"
    header = "-Wno-pragma-once-outside-header -Wno-unused-const-variable"  # common.h stands in the source itself
    return [
        tool("clang", target),
        *options.split(),
        *header.split(),
        "-fcuda-flush-denormals-to-zero",
        f"--offload-arch={target}",
    ]


def _run(command: list[str], text: str | None, what: str) -> str:
    result = subprocess.run(command, input=text, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        raise CompileError(f"{what} ended with status {result.returncode}\n{result.stderr}")
    return result.stdout


def _product(expression: str) -> int:
    """The value of `4 * 64`; raises ValueError for anything but a product of numbers."""
    value = 1
    for factor in expression.replace("(", "").replace(")", "").split("*"):
        value *= int(factor)
    return value


def _blocks(count: int, size: int) -> int:
    return -(-count // size)
