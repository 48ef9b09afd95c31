"""Reads machine code: for each instruction the unit that it needs, the clocks that it takes there, and its registers.

An instruction of a wave keeps its unit busy for these clocks. Their sources:
- Vector ALU: 64 lanes on 16 lanes of hardware take 4 clocks on CDNA, 32 on 32 take 1 on RDNA (AMD's ISA guides).
- exp2, log2, 1/x, square roots: a quarter of that rate (LLVM's SISchedule.td, "quarter rate"; gcnasm/ubench measured
  3.28e12 exp2/s on an RX 9070 XT, which is 4 clocks a wave).
- 32-bit integer products: a quarter too. An assumption for gfx942, because LLVM's tables for it say full rate.
- Matrix unit: AMD's matrix instruction calculator. On CDNA, other vector instructions start 4 clocks later; on RDNA
  they wait, because a product occupies the vector ALU.
"""

import re
import subprocess
import tempfile
from enum import IntEnum
from typing import NamedTuple

from tests.support.amd.compile import tool


class Unit(IntEnum):
    """The unit that executes an instruction, or its effect on the wave. schedule.cpp has the same list."""

    NONE, VALU, EXP, MATRIX, SCALAR, CONSTANTS, LOAD, STORE, LDS, WAIT, BARRIER, IDLE, PRIORITY, END = range(14)


class Waits(NamedTuple):
    """A wait until at most so many operations of a kind are under way; -1: any number."""

    loads: int = -1
    stores: int = -1
    lds: int = -1
    constants: int = -1


class Instruction(NamedTuple):
    """One instruction. Registers are numbers: v0 is 0, a0 256, s0 512, then vcc and exec."""

    address: int  # in the code object
    name: str
    operands: tuple[str, ...]
    modifiers: str  # "offset:16"
    unit: Unit
    clocks: int = 0  # of the unit, bank conflicts not included; of the wave, for IDLE; the level, for PRIORITY
    flops: int = 0  # of a matrix product
    bytes: int = 0  # of a lane and address, for LOAD, STORE and LDS
    pair: bool = False  # LDS: two addresses
    waits: Waits = Waits()
    writes: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()


VCC, EXEC, REGISTERS = 640, 642, 644

# Clocks of a bf16 or fp16 product by rows, columns and depth
MATRIX_CLOCKS = {
    "gfx90a": {(16, 16, 16): 32, (32, 32, 8): 64},
    "gfx942": {(16, 16, 16): 16, (32, 32, 8): 32},
    "gfx1100": {(16, 16, 16): 32},
    "gfx1151": {(16, 16, 16): 32},
    "gfx1201": {(16, 16, 16): 16},
}
_QUARTER = re.compile(r"v_(mul_lo_u32|mul_hi_[ui]32|mad_[ui]64_[ui]32)")
_EXP = re.compile(r"v_(exp|log|rcp|rcp_iflag|rsq|sqrt|sin|cos|s_exp|s_log)_(f16|f32|bf16)")
_NO_TARGET = re.compile(r"ds_(write|store)|v_cmpx|s_cmp|s_bitcmp")  # the first operand is read, too
_ADDS_TO_TARGET = re.compile(r"v_(fmac|mac|dot2c|pk_fmac)")
_SIZES = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def disassembled(code: bytes, target: str) -> dict[str, list[Instruction]]:
    """The kernels of a code object by name, as llvm-objdump reads them."""
    with tempfile.NamedTemporaryFile(suffix=".hsaco") as file:
        file.write(code)
        file.flush()
        command = [tool("llvm-objdump"), "-d", f"--mcpu={target}", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    for line in listing.splitlines():
        if found := re.match(r"[0-9a-f]+ <(\w+)>:", line):
            instructions = kernels.setdefault(found[1], [])
        elif found := re.match(r"\s+(\w+)(.*?)\s*// ([0-9A-F]+):", line):
            instructions.append(parsed(found[1], found[2].strip(), int(found[3], 16), target))
    return kernels


def parsed(name: str, text: str, address: int, target: str) -> Instruction:
    """An instruction from its name and its operands as llvm-objdump writes them.

    Example: v_mfma_f32_16x16x16_bf16 with "v[0:3], v[4:5], v[6:7], v[0:3]" on gfx942 has unit MATRIX, clocks 16, flops
    8,192, writes (0, 1, 2, 3), and reads (4, 5, 6, 7, 0, 1, 2, 3).
    """
    cut = re.match(r"(.*?)((?:\s(?:offset|offset0|offset1|op_sel|neg_|cbsz|th|scope|nt|sc|glc|slc)\b.*)?)$", text)
    operands = tuple(part.strip() for part in re.split(r",(?![^\[]*\])", cut[1]) if part.strip())
    plain = Instruction(address, name, operands, cut[2].strip(), Unit.NONE)
    turn = 4 if target.startswith("gfx9") else 1
    return _with_registers(_with_unit(plain, turn, target))


def _with_unit(i: Instruction, turn: int, target: str) -> Instruction:
    name = i.name
    if name.startswith(("v_mfma", "v_wmma")):
        rows, columns, depth = shape = tuple(map(int, re.search(r"(\d+)x(\d+)x(\d+)", name).groups()))
        return i._replace(unit=Unit.MATRIX, clocks=MATRIX_CLOCKS[target][shape], flops=2 * rows * columns * depth)
    if name == "v_nop":
        return i._replace(unit=Unit.IDLE)
    if name.startswith("v_"):
        unit = Unit.EXP if _EXP.match(name) else Unit.VALU
        return i._replace(unit=unit, clocks=4 * turn if unit == Unit.EXP or _QUARTER.match(name) else turn)
    if name.startswith("ds_"):
        return i._replace(
            unit=Unit.LDS, bytes=_bytes(name), pair=re.search(r"(read|write|load|store)2|2addr", name) is not None
        )
    if name.startswith(("global_load", "buffer_load", "scratch_load", "flat_load")):
        return i._replace(unit=Unit.LOAD, bytes=_bytes(name))
    if re.match(r"(global|buffer|scratch|flat)_(store|atomic)", name):
        return i._replace(unit=Unit.STORE, bytes=_bytes(name))
    if name.startswith(("s_load", "s_buffer_load")):
        return i._replace(unit=Unit.CONSTANTS)
    if name.startswith("s_wait"):
        return i._replace(unit=Unit.WAIT, waits=waits) if (waits := _waits(i)) != Waits() else i
    if name in ("s_barrier", "s_barrier_wait"):
        return i._replace(unit=Unit.BARRIER)
    if name == "s_barrier_signal":
        return i._replace(unit=Unit.IDLE)
    if name == "s_nop":
        return i._replace(unit=Unit.IDLE, clocks=(int(i.operands[0], 0) + 1) * turn)
    if name == "s_sleep":
        return i._replace(unit=Unit.IDLE, clocks=64 * int(i.operands[0], 0))
    if name == "s_setprio":
        return i._replace(unit=Unit.PRIORITY, clocks=int(i.operands[0], 0))
    if name.startswith("s_endpgm"):
        return i._replace(unit=Unit.END)
    if name in ("s_delay_alu", "s_clause", "s_code_end", "s_inst_prefetch") or not name.startswith("s_"):
        return i  # hints, and the caches' write-backs and invalidations
    return i._replace(unit=Unit.SCALAR, clocks=turn)


def _bytes(name: str) -> int:
    if "permute" in name or "swizzle" in name:
        return 4
    if found := re.search(r"_[biuf](\d+)(?!.*_[biuf]\d)", name):
        return int(found[1]) // 8
    return _SIZES[re.search(r"(dwordx\d|dword|byte|short)", name)[1]]


def _waits(i: Instruction) -> Waits:
    """RDNA 4 has one counter for accesses of the LDS and one for scalar loads. On other GPUs lgkmcnt counts both."""
    if i.name == "s_waitcnt":
        counts = dict(re.findall(r"(vmcnt|lgkmcnt)\((\d+)\)", " ".join(i.operands)))
        both = int(counts.get("lgkmcnt", -1))
        return Waits(loads=int(counts.get("vmcnt", -1)), lds=both, constants=both)
    if i.name == "s_waitcnt_vscnt":
        return Waits(stores=int(i.operands[-1], 0))
    field = {"loadcnt": "loads", "storecnt": "stores", "dscnt": "lds", "kmcnt": "constants"}
    kinds = [field[kind] for kind in i.name.split("_")[2:] if kind in field]
    if len(kinds) == 2:  # s_wait_loadcnt_dscnt 0x103: loads 1, LDS 3
        return Waits(**{kinds[0]: int(i.operands[0], 0) >> 8, kinds[1]: int(i.operands[0], 0) & 255})
    return Waits(**{kinds[0]: int(i.operands[0], 0)}) if kinds else Waits()


def _with_registers(i: Instruction) -> Instruction:
    if i.name.startswith("v_dual"):  # v_dual_fmac_f32 v1, v2, v3 :: v_dual_mul_f32 v4, v5, v6
        first, second = ", ".join(i.operands).split("::")
        name, _, operands = second.strip().partition(" ")
        halves = [_written_and_read(i.name, first.split(",")), _written_and_read(name, operands.split(","))]
        return i._replace(writes=sum((w for w, _ in halves), ()), reads=sum((r for _, r in halves), ()))
    if i.unit == Unit.STORE:
        return i._replace(reads=_registers(", ".join(i.operands)))
    if i.unit in (Unit.VALU, Unit.EXP, Unit.MATRIX, Unit.SCALAR, Unit.CONSTANTS, Unit.LOAD, Unit.LDS):
        writes, reads = _written_and_read(i.name, list(i.operands))
        return i._replace(writes=writes, reads=reads)
    return i


def _written_and_read(name: str, operands: list[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if _NO_TARGET.match(name):
        return (), _registers(", ".join(operands))
    writes, reads = _registers(operands[0]) if operands else (), _registers(", ".join(operands[1:]))
    return writes, reads + writes if _ADDS_TO_TARGET.match(name.replace("v_dual_", "v_")) else reads


def _registers(text: str) -> tuple[int, ...]:
    """Example: "v[2:3], s1" gives (2, 3, 513)."""
    found: list[int] = []
    for kind, first, last, single in re.findall(r"(?<![\w.])([vas])(?:\[(\d+):(\d+)\]|(\d+)(?![\w\[]))", text):
        base = {"v": 0, "a": 256, "s": 512}[kind]
        found += range(base + int(first), base + int(last) + 1) if first else [base + int(single)]
    for name, number in (("vcc", VCC), ("exec", EXEC)):
        if name in text:
            found += [number, number + 1]
    return tuple(found)
