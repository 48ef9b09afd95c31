"""CuPy as it is installed here: its import, its cache, its GPUs, and what to do if one of them is missing."""

import atexit
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from gpt.errors import UserError, first_line, shown

CACHE_ROOM = 2**20  # bytes that CuPy's cache must have room for: all kernels of a model take some 300 KiB
DRIVER, RENDERERS = "/dev/kfd", "/dev/dri/renderD*"  # the files that a user of ROCm must be allowed to open
WINDOWS_DRIVER = "/dev/dxg"  # in DRIVER's place in a Linux inside of Windows
# Variables that may hide GPUs: they name those that a program sees. ROCm heeds CUDA's, too.
CUDA_HIDES = ("CUDA_VISIBLE_DEVICES",)
ROCM_HIDES = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", *CUDA_HIDES)

# A library's name without lib and .so → the ROCm package that has it, if that has another name.
ROCM_PACKAGES = {
    "amdhip64": "hip-runtime-amd", "hiprtc": "hip-runtime-amd", "roctracer64": "roctracer", "roctx64": "roctracer",
}  # fmt: skip

_replaced: dict[str, str] = {}  # temporary folder → the note that says which cache of CuPy's it replaces, and why


def import_cupy() -> Any:
    """CuPy. Raises UserError, with what to install, if it is missing or does not load."""
    if "cupy" not in sys.modules:
        _prepare_cache()
    try:
        import cupy

        _ = cupy.cuda.runtime  # the folder that is left of a CuPy that was removed can be imported, too
    except ModuleNotFoundError:
        raise UserError(f"--device gpu needs CuPy: {install_advice()}") from None
    except (ImportError, OSError, AttributeError) as error:  # a library that cannot be loaded is an OSError of ctypes
        reason = error.__cause__ or error  # CuPy wraps it into a page of advice
        library = re.search(r"lib(\w+?)\.so[.\d]*", str(reason))
        package = ROCM_PACKAGES.get(library[1], library[1]) if library else "ROCm's or CUDA's libraries"
        remedy = library and _remedy_for_a_library(*library.group(0, 1)) or f"install {package}"
        raise UserError(
            f"CuPy does not load ({first_line(reason)}): {remedy}, or, if it was made for another vendor's "
            f"GPU or version, pip uninstall it and {install_advice()}"
        ) from None
    return cupy


def _remedy_for_a_library(file: str, name: str) -> str:
    """What to do about a file of ROCm's that the loader does not find, such as libamdhip64.so.7, if the file or another
    version of it is there; else "".
    """
    folder = Path(os.environ.get("ROCM_HOME", "/opt/rocm"), "lib")
    if (folder / file).exists():
        return f"add {folder} to LD_LIBRARY_PATH"
    others = sorted(path.name for path in folder.glob(f"lib{name}.so.*"))
    other = others[0] if others else find_library(name)
    if other and re.match("amdhip|hip|roc|rccl", name):
        return f"install ROCm 7, because the ROCm here has {other}"
    return ""


def install_advice() -> str:
    """The commands that install CuPy: hipgpt's extras if this is a checkout, else CuPy's own names."""
    root = Path(__file__).parents[3]
    if (root / "setup.py").is_file():
        where = "." if root == Path.cwd() else str(root)
        ways = [f"pip install -e '{where}[{extra}]'" for extra in ("rocm", "cuda12", "cuda13")]
    else:
        ways = ["pip install cupy-rocm-7-0", "pip install 'cupy-cuda12x[ctk]'", "pip install 'cupy-cuda13x[ctk]'"]
    return f"{ways[0]} for an AMD GPU, {ways[1]} or {ways[2]} for an NVIDIA GPU; --device cpu needs nothing"


def _prepare_cache() -> None:
    """Let CuPy keep compiled kernels in a temporary folder if it cannot write to its own.

    CuPy makes the folder, and remembers its name, as soon as it is imported. Raises UserError if no folder can be
    written to.
    """
    if os.environ.get("CUPY_CACHE_DIR") == "":  # CuPy would take it for the name of a folder
        del os.environ["CUPY_CACHE_DIR"]
    cache = kernel_cache()
    try:
        _try_cache(cache)
    except OSError as error:
        reason = f"CuPy's cache {cache} cannot be written ({error.strerror})"
    else:
        return
    remedy = "free some space, or set CUPY_CACHE_DIR to another folder"
    try:
        temporary = tempfile.mkdtemp(prefix="hipgpt-kernels-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        _try_cache(temporary)
    except OSError as error:
        raise UserError(f"{reason}, nor can a temporary folder ({error.strerror}): {remedy}") from None
    os.environ["CUPY_CACHE_DIR"] = temporary
    _replaced[temporary] = f"Note: {reason}, so every start compiles the kernels anew; {remedy}"


def _try_cache(folder: str) -> None:
    """Raises OSError if kernels cannot be written to the folder. Makes it if it is missing."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(CACHE_ROOM))


def kernel_cache() -> str:
    """CuPy's folder of compiled kernels."""
    return os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")


def cache_notes() -> list[str]:
    """A note that the cache is a temporary folder, and why; empty if it is the user's own."""
    return [_replaced[kernel_cache()]] if kernel_cache() in _replaced else []


def count_gpus() -> int:
    """How many GPUs CuPy sees. Raises UserError if CuPy is missing, or if there is no GPU."""
    cupy = import_cupy()
    runtime, reason = cupy.cuda.runtime, "it counts 0"
    try:
        if count := int(runtime.getDeviceCount()):
            return count
    except runtime.CUDARuntimeError as error:
        reason = first_line(error)
    raise UserError(
        f"the CuPy here is for {vendor(cupy)} GPUs and finds none ({reason}): "
        f"{_remedy_on_rocm() if runtime.is_hip else _remedy_for_hidden_gpus(CUDA_HIDES)}, or, for "
        f"the other vendor's GPU, pip uninstall it and {install_advice()}"
    )


def vendor(cupy: Any) -> str:
    """The vendor of the GPUs that this CuPy is made for, AMD or NVIDIA."""
    return "AMD" if cupy.cuda.runtime.is_hip else "NVIDIA"


def _remedy_on_rocm() -> str:
    """What to do if ROCm finds no GPU. It always says that there is none, but device files tell more."""
    if not os.path.exists(DRIVER) and not os.path.exists(WINDOWS_DRIVER):
        return f"there is no {DRIVER}, so load Linux's driver amdgpu, or give the device to this container"
    for file in (DRIVER, *sorted(glob.glob(RENDERERS))):
        if os.path.exists(file) and not os.access(file, os.R_OK | os.W_OK):
            return f"you may not open {file}, so type sudo usermod -aG render,video $USER, and log in again"
    return _remedy_for_hidden_gpus(ROCM_HIDES)


def _remedy_for_hidden_gpus(variables: Sequence[str]) -> str:
    """What to do if these variables, as far as they are set, or the driver may be why no GPU is found."""
    hiding = [f"{name} ({shown(os.environ[name])})" for name in variables if name in os.environ]
    return f"unset {' and '.join(hiding)}, which may hide it" if hiding else "check the driver"
