"""Executes a workgroup on the emulator of AMD's instruction sets, and notes every instruction of its waves."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tests.support.amd.emulator import CodeObject, tinygrad_emulator
from tests.support.amd.speed import banks
from tests.support.amd.speed.chips import CHIPS
from tests.support.amd.speed.instructions import Instruction, Unit

# One instruction of a wave: its place in the kernel's list, clocks of the LDS, cache lines that it touches, and bytes
# that the workgroup touches for the first time. schedule.cpp reads the same struct.
STEP = np.dtype([("instruction", "i4"), ("lds", "i4"), ("lines", "i4"), ("new_bytes", "i4")])
_EXEC_LOW = 126  # the emulator's number for the lanes that are active


class Trace(NamedTuple):
    """A workgroup's work."""

    waves: list[np.ndarray]  # STEP, for each wave
    needed_bytes: int  # of memory: words that it reads and words that it writes, each counted once


def trace(
    code: CodeObject,
    name: str,
    instructions: list[Instruction],
    workgroup: tuple[int, int],
    block: tuple[int, ...],
    arguments: tuple[Any, ...],
) -> Trace:
    """Execute one workgroup of a launch on the emulator. Arrays in `arguments` are written."""
    places = {instruction.address: place for place, instruction in enumerate(instructions)}
    workgroup_of = _Workgroup(instructions, CHIPS[code.target].line)

    def visit(state: Any, wave: int, pc: int) -> None:
        if (place := places.get(pc - code.address)) is not None:
            workgroup_of.note(place, wave, state)

    with _watched(workgroup, visit):
        code.launch(name, (1, 1), block, arguments)
    return workgroup_of.trace()


class _Workgroup:
    """Notes for a workgroup whose waves are executed in turn."""

    def __init__(self, instructions: list[Instruction], line: int) -> None:
        self._instructions, self._line = instructions, line
        self._waves: dict[int, list[tuple[int, int, int, int]]] = {}
        self._words: dict[Unit, set[int]] = {Unit.LOAD: set(), Unit.STORE: set()}

    def note(self, place: int, wave: int, state: Any) -> None:
        instruction, lds, lines, new = self._instructions[place], 0, 0, 0
        if instruction.unit == Unit.LDS:
            lds = self._lds_clocks(instruction, state)
        elif instruction.unit in (Unit.LOAD, Unit.STORE):
            lines, new = self._touched(instruction, state)
        self._waves.setdefault(wave, []).append((place, lds, lines, new))

    def trace(self) -> Trace:
        waves = [np.array(steps, STEP) for _, steps in sorted(self._waves.items())]
        return Trace(waves, 4 * sum(map(len, self._words.values())))

    def _lds_clocks(self, i: Instruction, state: Any) -> int:
        if "permute" in i.name or "swizzle" in i.name:
            return state.wave_size // 32  # lanes change places without a bank
        is_write = i.name.startswith(("ds_write", "ds_store"))
        addresses, active = _vector(state, i.operands[0 if is_write else 1]), _active(state)
        if i.pair:
            step = i.bytes * (64 if "st64" in i.name else 1)
            offsets = [step * _number(f"offset{which}", i.modifiers) for which in (0, 1)]
        else:
            offsets = [_number("offset", i.modifiers)]
        return sum(banks.clocks(addresses + offset, active, i.bytes, is_write) for offset in offsets)

    def _touched(self, i: Instruction, state: Any) -> tuple[int, int]:
        """Cache lines that the active lanes touch, and bytes that are new. Spilled registers are in a cache."""
        active = _active(state)
        if i.name.startswith("scratch"):
            return -(-int(active.sum()) * i.bytes // self._line), 0
        if not active.any():
            return 0, 0
        addresses = self._addresses(i, state)[active]
        words = np.unique(addresses[:, None] // 4 + np.arange(-(-i.bytes // 4)))
        known = self._words[i.unit]
        before = len(known)
        known.update(words.tolist())
        return len(np.unique(words * 4 // self._line)), 4 * (len(known) - before)

    def _addresses(self, i: Instruction, state: Any) -> np.ndarray:
        if not i.name.startswith("global"):
            raise ValueError(f"{i.name}: its addresses are not known to trace.py")
        operands = i.operands[1 if i.unit == Unit.LOAD else 0 :]
        address = operands[0]
        base = operands[-1] if i.unit == Unit.STORE or len(operands) > 1 else "off"
        offset = _number("offset", i.modifiers)
        if found := re.match(r"v\[(\d+):", address):  # 64 bits, in a pair of registers
            low = int(found[1])
            return _vector(state, f"v{low}") + (_vector(state, f"v{low + 1}") << 32) + offset
        first = int(re.match(r"s\[(\d+):", base)[1])
        scalar = state._read_sgpr(first) | state._read_sgpr(first + 1) << 32
        return _vector(state, address) + scalar + offset


def _vector(state: Any, register: str) -> np.ndarray:
    """The value of a vector register "v12" in each lane, int64."""
    lanes, number = state.wave_size, int(register.split()[0][1:])
    return np.frombuffer(state._vgpr_mv, np.uint32, lanes, 4 * lanes * number).astype(np.int64)


def _active(state: Any) -> np.ndarray:
    """Whether each lane is active, bool [lanes]."""
    mask = state._read_sgpr(_EXEC_LOW) | state._read_sgpr(_EXEC_LOW + 1) << 32
    return np.unpackbits(np.array([mask], "<u8").view(np.uint8), bitorder="little")[: state.wave_size].astype(bool)


def _number(name: str, modifiers: str) -> int:
    """The number after `name:` in modifiers such as "offset:16"; 0 if there is none."""
    found = re.search(rf"\b{name}:(-?\w+)", modifiers)
    return int(found[1], 0) if found else 0


@contextmanager
def _watched(workgroup: tuple[int, int], visit: Callable[[Any, int, int], None]) -> Iterator[None]:
    """Call visit(state, wave, pc) before each instruction of a launch, whose only workgroup is number `workgroup`."""
    emulator = tinygrad_emulator()
    init_wave, decode_at = emulator._init_wave, emulator._decode_at
    waves: dict[int, tuple[Any, int]] = {}  # address of a wave's scalar registers -> its state and number

    def init(lib, wave_start, total, lx, ly, lz, args, rsrc2, scratch, arch, gx, gy, gz, user_data, size):
        state = init_wave(
            lib, wave_start, total, lx, ly, lz, args, rsrc2, scratch, arch, *workgroup, 0, user_data, size
        )
        waves[state.sgpr_buf._buf.va_addr] = state, wave_start // size
        return state

    def decode(pc, arch):
        (program, runtime), instruction = decode_at(pc, arch)
        scalars = program.arg.globals.index(0)  # every instruction moves the program counter, which is one

        def run(*buffers):
            visit(*waves[buffers[scalars].value], pc)
            runtime.fxn(*buffers)

        return (program, SimpleNamespace(fxn=run)), instruction

    emulator._init_wave, emulator._decode_at = init, decode
    try:
        yield
    finally:
        emulator._init_wave, emulator._decode_at = init_wave, decode_at
