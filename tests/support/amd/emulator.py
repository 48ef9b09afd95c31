"""A device whose GPU is an emulator: clang compiles the kernels, and an emulator executes their machine code.

The emulator of the AMD instruction sets is tinygrad's (test/mockgpu/amd/emu.py). AMD_EMU names a checkout of tinygrad.
An instruction takes microseconds, and a kernel that is new to the emulator takes seconds, so shapes have to be small.

It has no caches, and no private memory on CDNA, and it does not flush denormals. `_patch` replaces the instructions
that it cannot run.
"""

import ctypes
import inspect
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from gpt.ops.gpu.sources import Instance
from tests.support.amd.compile import (
    PROCESSORS,
    Argument,
    Kernel,
    compile_source,
    missing,
    read_kernels,
    tool,
)
from tests.support.host_device import HostDevice

FAMILIES = {
    "gfx90a": "cdna", "gfx942": "cdna", "gfx1100": "rdna3", "gfx1103": "rdna3", "gfx1151": "rdna3", "gfx1201": "rdna4",
}  # fmt: skip
TARGETS = ("gfx90a", "gfx942", "gfx1100", "gfx1201")  # for tests: gfx1103 and gfx1151 execute what gfx1100 does
# Let clang avoid unaligned stores, because the emulator writes only a part of them.
ALIGNED = ("-Xclang", "-target-feature", "-Xclang", "-unaligned-access-mode")
# The mask of the bits that identify an instruction, and their value on gfx942 for the same one or the fused one.
GFX942_NUMBERS = {
    "v_mfma_f32_16x16x16bf16_1k": (0xFFFF0000, 0xD3E10000),
    "v_mfma_f32_32x32x8bf16_1k": (0xFFFF0000, 0xD3E00000),
    "v_mad_f32": (0x3FF << 16, 0x1CB << 16),  # v_fma_f32
    "v_mac_f32_e32": (0x3F << 25, 0x3B << 25),  # v_fmac_f32
}


def unavailable() -> str | None:
    """The reason why nothing can be emulated here; None if it can."""
    if not os.environ.get("AMD_EMU"):
        return "AMD_EMU does not name a checkout of tinygrad"
    return missing("clang")


class EmulatorDevice(HostDevice):
    """A device for GpuOps whose GPU is emulated and whose arrays are NumPy's."""

    has_bf16, has_tf32 = True, False

    def __init__(self, target: str) -> None:
        self.target = target
        self.description = f"emulated {target}"
        self.warp = PROCESSORS[target].wave
        self._compiled: dict[str, CodeObject] = {}

    def kernel(self, file: str, name: str, defines: Mapping[str, object], shared_bytes: int = 0) -> Callable[..., None]:
        """Kernel `name` of a file in kernels/, as a function of grid, block and arguments."""
        kernel = self.kernel_of(Instance.of(file, defines).source, name)
        return lambda *launch: self.ask(partial(kernel, *launch))

    def kernel_of(self, source: str, name: str) -> Callable[..., None]:
        """Kernel `name` of a whole source text, as a function of grid, block and arguments."""
        if source not in self._compiled:
            self._compiled[source] = CodeObject(compile_source(source, "clang", self.target, *ALIGNED))
        code = self._compiled[source]
        return lambda grid, block, args: code.launch(name, grid, block, args)


class CodeObject:
    """A code object in memory, ready to be launched. Its format is ELF and https://llvm.org/docs/AMDGPUUsage.html.

    Every launch adds `dynamic_lds` bytes to the shared memory that a kernel itself asks for.
    """

    def __init__(self, code: bytes, dynamic_lds: int = 0) -> None:
        self._dynamic_lds = dynamic_lds
        self.kernels = {each.name: each._replace(lds=each.lds + dynamic_lds) for each in read_kernels(code)}
        self.target = next(iter(self.kernels.values())).target
        self._load(code)
        self._patch(code)

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        """Run a kernel to its end. Arrays are passed by pointer, NumPy scalars by value.

        Raises TypeError if the kernel takes other arguments, and ValueError if it was compiled for smaller blocks.
        """
        self._run(name, grid, block, _checked(self.kernels[name], args))

    def launch_raw(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], values: Any) -> None:
        """Like `launch`, with arguments as HIP takes them: `values` is a C array with a pointer to each argument."""
        arguments = _expected(self.kernels[name])
        self._run(name, grid, block, [ctypes.string_at(values[i], a.size) for i, a in enumerate(arguments)])

    def _run(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], values: list[bytes]) -> None:
        kernel = self.kernels[name]
        if math.prod(block) > kernel.threads:
            raise ValueError(f"{name} was compiled for {kernel.threads} threads, not for {math.prod(block)}")
        arguments = _argument_block(kernel, values)
        descriptor = self.address + self._symbols[name + ".kd"]
        group, private, entry = struct.unpack("<II8xq", ctypes.string_at(descriptor, 24))
        resources, properties = struct.unpack("<IH", ctypes.string_at(descriptor + 52, 6))
        # As a loader does, put the size of LDS, in blocks of 512 bytes, into bits 15 to 23.
        resources = resources & ~(0x1FF << 15) | -(-(group + self._dynamic_lds) // 512) << 15
        # The descriptor's bits say which values the kernel expects in its first scalar registers, in this order. The
        # kernels of hipgpt read only the address of the arguments.
        registers = []
        for bit, count in enumerate((4, 2, 2, 2, 2, 2, 1)):
            if properties >> bit & 1:
                is_arguments = bit == 3
                registers += _halves(ctypes.addressof(arguments)) if is_arguments else [0] * count
        status = tinygrad_emulator().run_asm(
            descriptor + entry,
            self._size,
            *(tuple(grid) + (1, 1))[:3],
            *(tuple(block) + (1, 1))[:3],
            ctypes.addressof(arguments),
            resources,
            private,
            FAMILIES[self.target],
            registers,
        )
        if status:
            raise RuntimeError(f"{name}: the emulator ended with status {status}")

    def _load(self, code: bytes) -> None:
        """Copy the segments to the addresses that they ask for, and find the symbols."""
        (program_headers, section_headers) = struct.unpack_from("<QQ", code, 32)
        header_size, headers, section_size, sections, _ = struct.unpack_from("<5H", code, 54)
        segments = [
            (offset, address, in_file, in_memory)
            for kind, _, offset, address, _, in_file, in_memory, _ in (
                struct.unpack_from("<IIQQQQQQ", code, program_headers + i * header_size) for i in range(headers)
            )
            if kind == 1  # PT_LOAD
        ]
        self._size = max(address + in_memory for _, address, _, in_memory in segments)
        page = 4096
        self._buffer = ctypes.create_string_buffer(self._size + 2 * page)  # the emulator reads some bytes ahead
        self.address = -(-ctypes.addressof(self._buffer) // page) * page
        for offset, address, in_file, _ in segments:
            ctypes.memmove(self.address + address, code[offset : offset + in_file], in_file)
        table = [struct.unpack_from("<IIQQQQIIQQ", code, section_headers + i * section_size) for i in range(sections)]
        self._symbols = {}
        for _, kind, _, _, offset, size, link, *_ in table:
            if kind == 11:  # SHT_DYNSYM
                names = table[link][4]
                for at in range(offset, offset + size, 24):
                    name, value = struct.unpack_from("<I4xQ", code, at)
                    self._symbols[code[names + name : code.index(b"\0", names + name)].decode()] = value

    def _patch(self, code: bytes) -> None:
        """Replace the instructions that the emulator does not know.

        Cache write-backs and invalidations become s_nop, because the emulator has no caches. Changes of the treatment
        of denormals become s_nop as well, because it has only one.

        Instructions of gfx90a get the numbers that they have on gfx942, the only CDNA that the emulator knows. The
        multiply-add with two roundings, which gfx942 lacks, becomes the fused one.
        """
        with tempfile.NamedTemporaryFile(suffix=".hsaco") as file:
            file.write(code)
            file.flush()
            listing = subprocess.run(
                [tool("llvm-objdump"), "-d", file.name], capture_output=True, text=True, check=True
            ).stdout
        instruction = r"^\s+(\w+)(.*)// ([0-9A-F]+):((?: [0-9A-F]{8})+)"
        for name, operands, address, words in re.findall(instruction, listing, re.MULTILINE):
            at = self.address + int(address, 16)
            is_cache = re.fullmatch(r"buffer_(gl[01]_)?inv|buffer_wb\w*|buffer_invl2|global_(wb|inv|wbinv)", name)
            is_mode = name == "s_denorm_mode" or (name.startswith("s_setreg") and "HW_REG_MODE, 4, 2" in operands)
            if is_cache or is_mode:
                for i in range(len(words.split())):
                    ctypes.c_uint32.from_address(at + 4 * i).value = 0xBF800000  # s_nop 0
            elif self.target == "gfx90a" and name in GFX942_NUMBERS:
                mask, number = GFX942_NUMBERS[name]
                word = ctypes.c_uint32.from_address(at)
                word.value = word.value & ~mask | number


def _expected(kernel: Kernel) -> list[Argument]:
    return [argument for argument in kernel.arguments if not argument.kind.startswith("hidden")]


def _checked(kernel: Kernel, args: tuple[Any, ...]) -> list[bytes]:
    """The bytes to pass for arrays and NumPy scalars. Raises TypeError if the kernel takes other arguments."""
    expected = _expected(kernel)
    if len(args) != len(expected):
        raise TypeError(f"{kernel.name} takes {len(expected)} arguments, not {len(args)}")
    values = []
    for number, (value, argument) in enumerate(zip(args, expected, strict=True)):
        pointer = isinstance(value, np.ndarray)
        values.append(struct.pack("<Q", value.ctypes.data) if pointer else value.tobytes())
        if pointer != (argument.kind == "global_buffer") or len(values[-1]) != argument.size:
            raise TypeError(f"{kernel.name}, argument {number}: {argument} expected, not {value!r}")
    return values


def _argument_block(kernel: Kernel, values: list[bytes]) -> ctypes.Array:
    """The memory that a kernel reads its arguments from."""
    block = ctypes.create_string_buffer(max((a.offset + a.size for a in kernel.arguments), default=0) + 64)
    for value, argument in zip(values, _expected(kernel), strict=True):
        block[argument.offset : argument.offset + argument.size] = value
    return block


def _halves(value: int) -> list[int]:
    return [value & 0xFFFFFFFF, value >> 32]


@cache
def tinygrad_emulator() -> Any:
    """The emulator. Sets tinygrad's settings first: it reads them when it is imported, and compiles with CC."""
    os.environ.setdefault("DEV", "CPU")
    os.environ.setdefault("CC", tool("clang"))
    sys.path.insert(0, os.environ["AMD_EMU"])
    from test.mockgpu.amd import emu

    _mend(emu)
    return emu


def _mend(emu: Any) -> None:
    """Replace the emulator's translation of some instructions, which is wrong for the kernels of hipgpt."""

    class Masked(emu._Ctx):
        __slots__ = ()

        def rvgpr_dyn(self, register: Any, lane: Any, valid: Any = None) -> Any:
            value = super().rvgpr_dyn(register, lane, valid)
            return emu._lane_active(self.rexec(), lane).where(value, value.const_like(0))

    def shared_memory(instruction: Any, context: Any) -> Any:
        """Let lanes that are switched off read shared memory at address 0.

        The emulator reads for them too, and drops the value. But their registers need not hold an address, so the read
        may be a segmentation fault.
        """
        context.__class__ = Masked
        return emu._compile_mem_op(instruction, context)

    def of_16_bits(compile_it: Callable, instruction: Any, context: Any) -> Any:
        """Let v130 in a 16-bit instruction of CDNA be the register v130.

        In RDNA it stands for the upper half of v2, and the emulator takes it for that in CDNA, too.
        """
        bits = {name: max(32, size) for name, size in instruction.canonical_op_bits.items()}
        vars(instruction)["canonical_op_bits"] = bits
        return compile_it(instruction, context)

    # Element i of a lane's sums of a 32 x 32 product on CDNA is in row 8 (i / 4) + 4 (lane / 32) + i % 4, as AMD's
    # matrix instruction calculator says. The emulator has it in row 16 (lane / 32) + i.
    translation = inspect.getsource(emu._compile_mfma)
    row = "c_grp * UOp.const({}, dtypes.int) + UOp.const((out_reg // 4) * {}"
    exec(translation.replace(row.format(16, 4), row.format(4, 8)), vars(emu))

    matrix_product = emu._compile_wmma

    def of_any_summand(instruction: Any, context: Any) -> Any:
        """Let RDNA's matrix unit add a constant to a product.

        The emulator takes the constant for the number of a vector register, 0 for v128. In a kernel with that many
        registers, v128 holds something else.
        """

        class Adding(emu._Ctx):
            __slots__ = ()

            def rvgpr_dyn(self, register: Any, lane: Any, valid: Any = None) -> Any:
                summand = self.inst_field(type(instruction).src2)  # from 256 on a vector register
                if summand not in register.toposort():
                    return super().rvgpr_dyn(register, lane, valid)
                is_vector = summand >= summand.const_like(256)
                vector = super().rvgpr_dyn(register, lane, is_vector)
                return is_vector.where(vector, self.rsgpr_dyn(summand, is_vector.ne(True)))

        context.__class__ = Adding
        return matrix_product(instruction, context)

    emu._compile_wmma = of_any_summand
    other_lanes = emu._load_dpp16_src0

    def of_old_values(context: Any, instruction: Any, lane: Any, fallback: Any) -> Any:
        """Let an instruction that reads a register of other lanes (DPP) find what was there before it.

        The emulator lets one lane after the other read and write. So with x in v4, v_add_f32_dpp v4, v4, v4
        quad_perm:[1,0,3,2] gave lane 0 its x0 + x1, but lane 1 x0 + 2 x1.
        """

        class Copying(emu._Ctx):
            __slots__ = ()

            def rvgpr_dyn(self, register: Any, lane: Any, valid: Any = None) -> Any:
                copied = self.range()
                local = emu.AddrSpace.LOCAL
                copy = emu.UOp.placeholder((self.wave_size,), emu.dtypes.uint32, slot=0, addrspace=local)
                stored = copy.index(copied).store(super().rvgpr_dyn(register, copied)).end(copied)
                return copy.after(stored).index(lane)

        kind = context.__class__
        context.__class__ = Copying
        value = other_lanes(context, instruction, lane, fallback)
        context.__class__ = kind
        return value

    emu._load_dpp16_src0 = of_old_values
    control_of = emu._dpp16_ctrl

    def of_one_lane(lane: Any, control: int, *masks_and_size: int) -> Any:
        """Know the control words 0x150 + i: all lanes of a row of 16 read lane i (row_share, on CDNA row_newbcast)."""
        if control & 0x1F0 != 0x150:
            return control_of(lane, control, *masks_and_size)
        _, enabled, valid = control_of(lane, 0, *masks_and_size)
        number = lane.cast(emu.dtypes.int)
        return (number & number.const_like(~15)) + number.const_like(control & 15), enabled, valid

    emu._dpp16_ctrl = of_one_lane
    handlers = emu._INST_HANDLERS
    for kind in handlers:
        if kind.__name__ == "DS":
            handlers[kind] = shared_memory
    for kind in (emu.irc.VOP1, emu.irc.VOP2, emu.irc.VOPC):
        handlers[kind] = partial(of_16_bits, handlers[kind])
