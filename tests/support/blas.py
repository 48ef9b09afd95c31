"""A stand-in for the vendors' libraries of matrix products, tests/support/blas_library.c, and arrays for it."""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gpt.ops.gpu.blas import ALIGNMENT
from tests.support import ROOT

SOURCE = ROOT / "tests/support/blas_library.c"


def build(kind: str, path: Path) -> ctypes.CDLL:
    """Compile and load the library of `kind` "cuda" or "rocm"; skips without a C compiler.

    Every file that is loaded has variables of its own.
    """
    path.write_bytes(_compiled(kind))
    return ctypes.CDLL(str(path))


@cache
def _compiled(kind: str) -> bytes:
    """The library's file."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = ["-DROCM"] if kind == "rocm" else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        command = [compiler, *flags, "-O1", "-w", "-shared", "-fPIC", str(SOURCE), "-o", str(path), "-lm"]
        subprocess.run(command, check=True)
        return path.read_bytes()


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy of x at an address that is aligned as the libraries require."""
    memory = np.empty(x.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


class AlignedNumpy:
    """NumPy with new arrays at aligned addresses, as a GPU's are."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype=np.float32):
        return aligned(np.empty(shape, dtype))

    @staticmethod
    def zeros(shape, dtype=np.float32):
        return aligned(np.zeros(shape, dtype))
