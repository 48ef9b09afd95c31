"""What is installed and found on this machine, for `hipgpt doctor`. Nothing here fails.

A fact that cannot be found out is a line with the reason. User name, home folder and host name are left out.
"""

import getpass
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import threadpoolctl

import gpt
from gpt.errors import first_line
from gpt.ops.gpu import installation
from gpt.ops.gpu.facts import Facts, Gpu
from gpt.system import limits, process
from gpt.system.console import size

Facet = dict[str, str]  # label → fact

PATIENCE = 20  # seconds for another program to answer
# Without OPENBLAS_NUM_THREADS, which gpt/commands/command_line.py sets
VARIABLES = re.compile(
    r"(HIP|CUDA|ROCR|GPU)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|HSA_\w+|AMD_\w+|ROCM_(HOME|PATH)|CUDA_(HOME|PATH)|"
    r"(OMP|OPENBLAS(?!_NUM_THREADS)|MKL|NUMBA|GOMP|NCCL|RCCL|CUPY|HIPGPT|HIPBLASLT|TENSILE)_\w+|PYTHONHASHSEED"
)
SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")  # HIPGPT_RANKS_KEY, say
MPI = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"


def inventory() -> dict[str, Facet]:
    """All facts, by section."""
    # Before CuPy is imported, which may replace a cache that cannot be written
    caches, variables = {"CuPy": _known(_cupy_cache), "numba": _known(_numba_cache)}, environment(os.environ)
    found = {
        "Program": {"hipgpt": _known(_hipgpt), "Python": f"{platform.python_version()} ({sys.platform})"},
        "Machine": {
            "system": _known(_system), "CPU": _known(_cpu), "memory": _known(_memory),
        },
        "Packages": {
            "NumPy": _known(_numpy),
            "numba": _known(lambda: f"{_version('numba')}; SciPy: {_version('scipy')}"),
            "CuPy": _known(_cupy_packages),
            "mpi4py": _known(_mpi),
        },
        "GPU": _gpu(),
        "Caches": caches,
        "Environment": variables,
    }  # fmt: skip
    return {section: {label: private(fact) for label, fact in facet.items()} for section, facet in found.items()}


def private(text: str) -> str:
    """The text without the home folder (it becomes ~), the user's name and the host's.

    For example "/home/ada/.cupy on babbage" becomes "~/.cupy on HOST".
    """
    home = os.path.expanduser("~")
    for folder in {home, os.path.realpath(home)} - {"/"}:
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    names = {"HOST": {socket.gethostname(), socket.gethostname().partition(".")[0]}, "USER": set[str]()}
    with suppress(Exception):  # a user without an entry in the system's list
        names["USER"] = {getpass.getuser()} - {"root"}
    for stand_in, each in names.items():
        for name in sorted(each - {"", "localhost"}, key=len, reverse=True):
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stand_in, text)
    return text


def environment(variables: Mapping[str, str]) -> Facet:
    """The variables that matter, those alone that are set."""
    return {
        name: value for name, value in sorted(variables.items())
        if VARIABLES.fullmatch(name) and not SECRET.search(name)
    }  # fmt: skip


# ---- program and machine ---------------------------------------------------------------------------------------------


def _hipgpt() -> str:
    root = Path(gpt.__file__).parents[1]
    if not (root / ".git").exists():
        return gpt.__version__
    commit = _output("git", "-C", str(root), "rev-parse", "--short=10", "HEAD")
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f"{gpt.__version__}, commit {commit}{', changed' if changed else ''}"


def _system() -> str:
    name = ""
    with suppress(OSError):
        name = f", {platform.freedesktop_os_release().get('PRETTY_NAME', '')}"
    return f"{platform.system()} {platform.release()} {platform.machine()}{name}"


def _cpu() -> str:
    name = platform.processor() or "CPU"
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1] if found else name
    return f"{name}, {limits.cpus()} of {os.cpu_count()} CPUs may be used"


def _memory() -> str:
    return f"{size(limits.free_memory())} free of {size(psutil.virtual_memory().total)}"


# ---- packages --------------------------------------------------------------------------------------------------------


def _numpy() -> str:
    import numpy  # noqa: F401 # so that threadpoolctl sees its BLAS

    blas = [each for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]
    named = [f"{each['internal_api']} {each['version']} ({each.get('architecture', '?')})" for each in blas]
    return f"{_version('numpy')}, BLAS: {', '.join(named) or 'not known'}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cupy_packages() -> str:
    """The packages that bring the module cupy. There should be one: a second one breaks the first."""
    names = sorted(set(importlib.metadata.packages_distributions().get("cupy", ())))
    packages = [f"{name} {_version(name)}" for name in names]
    if not packages:
        return "not installed"
    return packages[0] if len(packages) == 1 else f"{', '.join(packages)}: uninstall all but one"


def _mpi() -> str:
    if (version := _version("mpi4py")) == "not installed":
        return version
    return f"{version}, MPI: {_headline(*process.python(MPI))}"


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def _gpu() -> Facet:
    try:
        facts = Facts()
    except Exception as error:  # CuPy may raise any
        return {"GPU": _unknown(error)}
    made_for, compiler = ("ROCm", "hiprtc") if facts.is_rocm else ("CUDA", "NVRTC")
    found = {
        "CuPy": _known(lambda: f"{facts.cupy_version}, for {made_for}"),
        "driver": _known(_kernel_driver) + _known(lambda: f"; supports {made_for} {facts.driver()}"),
        f"{made_for} runtime": _known(facts.runtime),
        compiler: _known(facts.compiler),
        "products": _known(lambda: " ".join(facts.blas())),
        "NCCL or RCCL": _known(_nccl),
    }
    if facts.is_rocm:
        found |= {"hipcc": _known(_hipcc), "ROCm": _known(_rocm)}
    try:
        found |= {f"GPU {number}": _described(gpu) for number, gpu in enumerate(facts.gpus())}
    except Exception as error:  # CuPy may raise any
        found["GPU"] = _unknown(error)
    return found


def _described(gpu: Gpu) -> str:
    memory = f"{size(gpu.memory[0])} free of {size(gpu.memory[1])}" if gpu.memory else "its memory cannot be asked for"
    return f"{gpu.name} ({gpu.target}), {memory}{', integrated' if gpu.integrated else ''}"


def _kernel_driver() -> str:
    """The version of the system's driver; AMD's has one only if it does not come with Linux."""
    for path, pattern in (
        ("/proc/driver/nvidia/version", r"Kernel Module.*?(\d+\.[\d.]+)"), ("/sys/module/amdgpu/version", r"(\S+)")
    ):  # fmt: skip
        with suppress(OSError):
            if found := re.search(pattern, Path(path).read_text(encoding="utf-8")):
                return found[1]
    return f"Linux's own, {platform.release()}" if Path("/sys/module/amdgpu").exists() else "version not known"


def _nccl() -> str:
    from gpt.distributed import nccl

    return nccl.version()


def _hipcc() -> str:
    path = shutil.which("hipcc")
    return f"{path}, {_headline(path, '--version')}" if path else "not on the PATH"


def _rocm() -> str:
    home = Path(os.environ.get("ROCM_HOME") or os.environ.get("ROCM_PATH") or "/opt/rocm")
    return (home / ".info" / "version").read_text(encoding="utf-8").strip()


# ---- caches ----------------------------------------------------------------------------------------------------------


def _cupy_cache() -> str:
    folder = Path(installation.kernel_cache())
    return _cache(folder, folder.glob("*"))


def _numba_cache() -> str:
    wanted = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(wanted) if wanted else Path(gpt.__file__).parent / "ops" / "cpu" / "__pycache__"
    return _cache(folder, folder.rglob("*.nb[ic]"))


def _cache(folder: Path, files: Iterable[Path]) -> str:
    used = sum(file.stat().st_size for file in files if file.is_file())
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return f"{folder}, {size(used)}, {'' if _is_writable(existing) else 'not '}writable"


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


# ---- asking ----------------------------------------------------------------------------------------------------------


def _known(ask: Callable[[], str]) -> str:
    """The answer in one line, or the reason why there is none."""
    try:
        return " ".join(ask().split())
    except Exception as error:  # drivers, libraries and CuPy may raise any
        return _unknown(error)


def _unknown(error: Exception) -> str:
    return f"not known: {first_line(error)}"


def _headline(*command: str) -> str:
    """The first line that another program prints. Raises as `_output` does, and RuntimeError if it prints nothing."""
    lines = _output(*command).splitlines()
    if not lines:
        raise RuntimeError(f"{Path(command[0]).name} prints nothing")
    return lines[0]


def _output(*command: str) -> str:
    """What another program prints. Raises OSError or RuntimeError if it fails or takes longer than PATIENCE."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{Path(command[0]).name} does not answer within {PATIENCE} s") from None
    if result.returncode:
        last = (result.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"{Path(command[0]).name} fails: {last}")
    return result.stdout.replace("\0", "").strip()  # Open MPI's version ends with a zero byte
