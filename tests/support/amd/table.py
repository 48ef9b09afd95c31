"""`python -m tests.support.amd.table` prints the resources that each kernel takes on each AMD GPU.

Its exit status is 1 if a kernel is unfit or a compiler is absent. It compiles everything, for half an hour on two
cores; `python -m tests.support.fit` compiles only what has changed.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from gpt.ops.gpu.targets import has_bf16
from tests.support.amd.compile import (
    BF16_ALONE,
    PROCESSORS,
    TARGETS,
    TOLERATED,
    CompileError,
    Kernel,
    asked_threads,
    compile_kernels,
    missing,
)
from tests.support.compilation import Compilation
from tests.support.instances import instances

HEADINGS = ("kernel", "instance", "target", "VGPRs", "SGPRs", "LDS", "waves", "")


class AmdCompilation(Compilation):
    """clang's or hiprtc's: compile.py says which code is fit."""

    def faults(self) -> list[str]:
        try:
            return [f"{kernel.name}: {complaint}" for kernel, found in self.compile() for complaint in found]
        except CompileError as error:
            return [str(error)]

    def compile(self) -> list[tuple[Kernel, list[str]]]:
        """The kernels, each with the complaints about it. Raises CompileError."""
        source = self.instance.source
        kernels = compile_kernels(source, self.compiler, self.target)
        asked = _asked_threads(source, PROCESSORS[self.target].wave)
        return [(kernel, kernel.complaints(asked[kernel.name])) for kernel in kernels]


_asked_threads = cache(asked_threads)  # the same for many targets


def compilations() -> list[AmdCompilation]:
    """One for every compiler, each of its targets, and each instance that training and generation need there.

    A target in BF16_ALONE has its instances with bf16 alone, because the others are those of another target.
    """
    return [
        AmdCompilation(compiler, target, instance)
        for compiler, targets in TARGETS.items()
        for target in targets
        for instance in instances(target, PROCESSORS[target].wave, has_bf16(target))
        if target not in BF16_ALONE or "bf16" in dict(instance.defines).values()
    ]


def main() -> int:
    """Print the table. Returns 1 if a kernel is unfit or a compiler absent, else 0."""
    absent = {missing(compiler, target): None for compiler, targets in TARGETS.items() for target in targets}
    if reasons := [reason for reason in absent if reason]:
        print(*reasons, sep="\n")
        return 1
    rows, unfit = [HEADINGS], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # one compiler for each core; each is a process of its own
        everything = compilations()
        for compilation, kernels in zip(everything, pool.map(AmdCompilation.compile, everything), strict=True):
            for kernel, complaints in kernels:
                unfit += bool(complaints)
                defines = " ".join(f"{name}={value}" for name, value in compilation.instance.defines)
                target = f"{compilation.target} ({compilation.compiler})"
                numbers = (kernel.vgprs, kernel.sgprs, kernel.lds, f"{kernel.waves:g}")
                remarks = complaints or [f"tolerated: {each}" for each in kernel.slowness]
                rows.append((kernel.name, defines, target, *map(str, numbers), "; ".join(remarks)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for target, reason in TOLERATED.items():
        print(f"{target}: {reason}.")
    return min(unfit, 1)


if __name__ == "__main__":
    sys.exit(main())
