"""The Python side of the libraries hip.c and hiprtc.c.

It compiles the sources that CuPy gives to hiprtc, and launches kernels on the emulator.
"""

import ctypes
import os
import struct
import sys
from collections import Counter
from typing import Any

from tests.support.amd.compile import TARGETS, CompileError, compile_source, missing
from tests.support.amd.emulator import CodeObject

TARGET = os.environ["SIMULATED_TARGET"]
# Definitions that are built into hiprtc, and that clang lacks without HIP's headers.
KEYWORDS = [f"-D__{word}__=__attribute__(({word}))" for word in ("global", "device", "shared", "constant")]
KEYWORDS += ["-D__HIPCC_RTC__=1"]
# Without it clang makes a symbol of the paths of its files, which are random, and CuPy would never find a kernel in its
# cache. ROCm's compiler makes it of the source (getStableCUID in amd/comgr/src/comgr-compiler.cpp).
KEYWORDS += ["-fuse-cuid=none"]

launches: Counter[str] = Counter()  # {name of a kernel: how often it was launched}


def simulate() -> list[Any]:
    """Answer the calls of the simulated runtime and compiler.

    Keep the result as long as they are used: it owns the functions that they call.
    """
    try:
        runtime, compiler = ctypes.CDLL("libamdhip64.so.7"), ctypes.CDLL("libhiprtc.so.7")
    except OSError:  # a ROCm without them: the program has to report that
        return []
    modules: list[CodeObject] = []

    @ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)
    def load(image: int) -> int:
        modules.append(CodeObject(ctypes.string_at(image, _elf_size(image))))
        return len(modules)  # a module's number begins with 1, because 0 is not a handle

    @ctypes.CFUNCTYPE(
        None, ctypes.c_size_t, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_void_p)
    )
    def launch(module: int, name: bytes, sizes: Any, arguments: Any) -> None:
        launches[name.decode()] += 1
        try:
            modules[module - 1].launch_raw(name.decode(), tuple(sizes[:3]), tuple(sizes[3:6]), arguments)
        except BaseException:  # ctypes would only print it, and the program would go on
            sys.excepthook(*sys.exc_info())
            os._exit(70)

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
    def compile_program(program: int, source: bytes, count: int, options: Any) -> int:
        try:
            code = _compile(source.decode(), [option.decode() for option in options[:count]])
        except CompileError as error:
            compiler.set_log(ctypes.c_void_p(program), str(error).split("\n", 1)[1].encode())
            return 1
        compiler.set_log(ctypes.c_void_p(program), b"")
        compiler.set_code(ctypes.c_void_p(program), code, ctypes.c_size_t(len(code)))
        return 0

    runtime.simulated_on(load, launch)
    compiler.simulated_on(compile_program)
    return [runtime, compiler, load, launch, compile_program]


def _compile(source: str, options: list[str]) -> bytes:
    options = [option for option in options if not option.startswith(("-std", "--std"))]
    if TARGET in TARGETS["hiprtc"] and not missing("hiprtc"):
        return compile_source(source, "hiprtc", TARGET, *options)
    return compile_source(source, "clang", TARGET, *options, *KEYWORDS, "-w")


def _elf_size(image: int) -> int:
    """The size of an ELF file in memory, in bytes: it ends with the section headers."""
    header = ctypes.string_at(image, 64)
    offset, size, count = *struct.unpack_from("<Q", header, 40), *struct.unpack_from("<HH", header, 58)
    return offset + size * count
