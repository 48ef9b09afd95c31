"""ROCm without an AMD GPU: the real cupy-rocm wheel on a simulated HIP runtime.

These parts are real: CuPy's ROCm wheel with its HIP code paths, all of hipgpt, and the code and arguments of its
kernels. These parts are simulated:
- memory is the host's (hip.c)
- the compiler is hiprtc 5.2 if that knows the target, else clang 19 (hiprtc.c)
- kernels run on the emulator of tests/support/amd
- hipBLASLt is a loop (hipblaslt.c)
- RCCL exchanges arrays through shared memory (rccl.c)
- all other libraries that CuPy links to are functions that do nothing and return success

The simulation needs gcc, the tools that tests/support/amd needs, and HIPGPT_ROCM_PYTHON. This variable names a Python
with `pip install 'hipgpt[rocm]'`, in an environment of its own because CuPy's wheels for different vendors clash. CuPy
reads its surroundings when it is imported, so every program runs in a process of its own:
`python -m tests.support.rocm PROGRAM`.
"""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import IO

from tests.support import ROOT
from tests.support.amd import emulator

HERE = Path(__file__).parent
READELF = "readelf"
HIPCC = """#!/bin/sh
printf '#include <...> search starts here:\\n {include}\\nEnd of search list.\\n' >&2
"""


@cache
def unavailable() -> str | None:
    """Why ROCm cannot be simulated here; None if it can."""
    if "HIPGPT_ROCM_PYTHON" not in os.environ:
        return "HIPGPT_ROCM_PYTHON does not name a Python that has cupy-rocm"
    for tool in ("gcc", READELF):
        if not shutil.which(tool):
            return f"{tool} is absent (apt-get install gcc)"
    return emulator.unavailable()


class Simulation:
    """A simulated installation of ROCm in a `folder` that is empty before."""

    def __init__(self, folder: Path) -> None:
        self._python, self.folder = os.environ["HIPGPT_ROCM_PYTHON"], folder
        _build_libraries(self._packages(), folder / "libraries")
        self.include = folder / "include"
        self.include.mkdir()
        hipcc = folder / "bin" / "hipcc"
        hipcc.parent.mkdir()
        hipcc.write_text(HIPCC.format(include=self.include), encoding="utf-8")
        hipcc.chmod(0o755)

    def run(
        self, program: str, *arguments: str, target: str, gpus: int = 1, hipcc: bool = True, hipblaslt: str = "",
        without: str = "", stdin: IO[bytes] | None = None,
    ) -> subprocess.CompletedProcess:  # fmt: skip
        """Run `main` of tests/support/rocm/`program`.py on a machine with `gpus` GPUs of the kind `target`.

        `hipblaslt` is a mode of hipblaslt.c, or "" if that library is not installed. `without` names another library
        that is not installed.
        """
        libraries = self.folder / "libraries"  # not lib, where hipgpt would find what `without` takes away
        if without:
            libraries = shutil.copytree(libraries, self.folder / f"without-{without}", dirs_exist_ok=True)
            (libraries / without).unlink()
        path = [str(self.folder / "bin")] if hipcc else []
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, (libraries, libraries / "hipblaslt")[: 2 if hipblaslt else 1])),
            "ROCM_HOME": str(self.folder),
            "PATH": os.pathsep.join([*path, os.environ["PATH"]]),
            "CUPY_CACHE_DIR": str(self.folder / f"cache-{target}"),
            "SIMULATED_TARGET": target,
            "SIMULATED_GPUS": str(gpus),
            "SIMULATED_HIPBLASLT": hipblaslt,
        }
        command = [self._python, "-m", "tests.support.rocm", program, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=900, check=False, stdin=stdin
        )

    def _packages(self) -> Path:
        """The folder of the packages of HIPGPT_ROCM_PYTHON."""
        code = "import importlib.util as u, sys; sys.stdout.write(u.find_spec('cupy').submodule_search_locations[0])"
        found = subprocess.run([self._python, "-c", code], capture_output=True, text=True, check=True).stdout
        return Path(found).parent


def _build_libraries(packages: Path, folder: Path) -> None:
    """Build every library that CuPy's wheel links to and a plain Linux lacks.

    All of CuPy's parts load the simulated runtime. So it also exports the functions that are not simulated: they return
    0, which is success.
    """
    needed, wanted = set(), set()
    for library in packages.glob("cupy*/**/*.so"):
        listing = _output(READELF, "-W", "-d", "--dyn-syms", str(library))
        needed |= set(re.findall(r"\(NEEDED\).*\[(lib(?:amdhip64|hip|roc|rccl)[^]]*)\]", listing))
        wanted |= set(re.findall(r" UND ((?:__)?(?:hip|roc|nccl)\w+)", listing))
    runtime, rccl = ((HERE / name).read_text(encoding="utf-8") for name in ("hip.c", "rccl.c"))
    for name in sorted(wanted - set(re.findall(r"^(?:int|const char\*) (\w+)\(", runtime + rccl, re.MULTILINE))):
        stub = f"int {name}(void) {{ return 0; }}\n"
        runtime, rccl = (runtime, rccl + stub) if name.startswith("nccl") else (runtime + stub, rccl)
    (folder / "hipblaslt").mkdir(parents=True)
    sources = {"libamdhip64": runtime, "librccl": rccl}
    for name in needed:
        _build_library(folder / name, sources.get(name.partition(".")[0], ""))
    _build_library(folder / "libhiprtc.so.7", (HERE / "hiprtc.c").read_text(encoding="utf-8"))
    blas = (HERE / "hipblaslt.c").read_text(encoding="utf-8")
    _build_library(folder / "hipblaslt" / "libhipblaslt.so.1", blas, "-lm")


def _build_library(path: Path, source: str, *options: str) -> None:
    command = ["gcc", "-w", "-O2", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-x", "c", "-", "-o", str(path)]
    subprocess.run([*command, *options], input=source, text=True, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
