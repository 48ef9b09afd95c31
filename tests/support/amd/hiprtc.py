"""The real hiprtc, with no GPU: `python hiprtc.py TARGET RESULT [option …] < source` writes a code object.

CuPy calls hiprtc on ROCm. HIP's header is built into it, so names that clash with that header on ROCm clash here too.
Debian has version 5.2 (libamdhip64-5, libhiprtc-builtins5, rocm-device-libs), which knows gfx90a and gfx1030. It
crashes on gfx11 and newer.
"""

import ctypes
import sys
from pathlib import Path


def main(target: str, result: str, *options: str) -> int:
    """Compile standard input into the file `result`, with the log on stderr. Returns hiprtc's status, 0 for success."""
    hip = ctypes.CDLL("libamdhip64.so.5")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    status = hip.hiprtcCreateProgram(ctypes.byref(program), sys.stdin.buffer.read(), b"kernel.hip", 0, None, None)
    if status:
        return status
    arguments = [f"--offload-arch={target}", "-std=c++17", "-O3", "-fcuda-flush-denormals-to-zero", *options]
    array = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
    status = hip.hiprtcCompileProgram(program, len(arguments), array)
    hip.hiprtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    hip.hiprtcGetProgramLog(program, log)
    sys.stderr.write(log.value.decode(errors="replace"))
    if status == 0:
        hip.hiprtcGetCodeSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        hip.hiprtcGetCode(program, code)
        Path(result).write_bytes(code.raw)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
