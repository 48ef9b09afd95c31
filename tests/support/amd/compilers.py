"""`python -m tests.support.amd.compilers` prints what each installed clang makes of the matrix kernels on gfx942.

CDNA has accumulation registers, and whether sums of products lie there is up to LLVM, whose rules have changed often.
If a loop moves sums in and out, a kernel takes much longer. ROCm 6 has LLVM 17 to 19, and ROCm 7 has 20 to 22. For
each kernel the command prints the moves in loops, the registers, and the spilled ones. From version 22 on it does so a
second time, with an option of LLVM that keeps sums out of the accumulation registers. The exit status is 1 if a kernel
has moves or spilled registers without the option, or if no clang is installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gpt.ops.gpu.sources import Instance
from tests.support.amd.compile import Kernel, clang_command, read_kernels
from tests.support.instances import instances

TARGET = "gfx942"
VERSIONS = range(17, 31)  # the first that knows gfx942, and some that are to come
VGPR_FORM = ("-mllvm", "-amdgpu-mfma-vgpr-form")
HAS_VGPR_FORM = 22  # the first version with the option
KERNELS = {
    "attention": ("attention.hip", "wide_bf16"),
    "attention_backward_queries": ("attention.hip", "wide_bf16"),
    "attention_backward_keys": ("attention.hip", "wide_bf16"),
    "matmul": ("matmul.hip", None),
}


def main() -> int:
    found = [version for version in VERSIONS if shutil.which(f"clang-{version}")]
    if not found:
        print("no clang is installed (apt-get install clang-19 lld-19 llvm-19)", file=sys.stderr)
        return 1
    wanted = {name: _instance(file, matrix) for name, (file, matrix) in KERNELS.items()}
    status = 0
    for version in found:
        for options in ((), VGPR_FORM) if version >= HAS_VGPR_FORM else ((),):
            print(f"clang {version}", *options)
            compiled = {instance: _compiled(instance, version, *options) for instance in set(wanted.values())}
            for name, instance in wanted.items():
                kernel = next(kernel for kernel in compiled[instance] if kernel.name == name)
                counts = f"{kernel.moves:4} moves, {kernel.vgprs:3} registers, {kernel.spills:2} spilled"
                print(f"  {name:28}{counts}", flush=True)
                if not options and (kernel.moves or kernel.spills):
                    status = 1
    return status


def _instance(file: str, matrix: str | None) -> Instance:
    """The first instance in bf16 for heads of 64, without dropout, or of products."""
    wanted = {"T": "bf16"} | ({"MATRIX": matrix, "HEAD_DIM": "64", "DROPOUT": "0"} if matrix else {})
    return next(i for i in instances(TARGET, 64, True) if i.file == file and wanted.items() <= dict(i.defines).items())


def _compiled(instance: Instance, version: int, *options: str) -> list[Kernel]:
    """The kernels of an instance. Raises CalledProcessError if clang does not compile it; clang says why."""
    with TemporaryDirectory() as folder:
        result = Path(folder) / "kernel.o"
        unlinked = ("-S", "-Xclang", "-emit-obj", "-", "-o", str(result))
        command = [f"clang-{version}", *clang_command(TARGET)[1:], *options, *unlinked]
        subprocess.run(command, input=instance.source, text=True, check=True)
        return read_kernels(result.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
