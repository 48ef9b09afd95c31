"""Machines with GPUs, played by a stand-in for the module cupy; and the line that a user reads if one is refused."""

import sys
import types

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.ops.gpu.device import CupyDevice


class RuntimeFailureError(Exception):
    pass


class CompileError(Exception):
    pass


def machine(monkeypatch, *, hip=False, count=1, properties=None, failure=None, module=None, gpus=None, busy=()):
    """Let `import cupy` give a machine with `count` GPUs that all have `properties`.

    Or give `gpus`, a list with the properties of each. GPUs whose numbers are in `busy` cannot be used.
    """
    count = count if gpus is None else len(gpus)

    def use(index):
        if index in busy:
            raise RuntimeFailureError("all devices are busy")

    def device_count():
        if failure:
            raise RuntimeFailureError(failure)
        return count

    cupy = types.ModuleType("cupy")
    cupy.empty, cupy.zeros, cupy.asarray, cupy.asnumpy = np.empty, np.zeros, np.asarray, np.asarray
    properties = properties or {"name": b"A GPU", "major": 9, "minor": 0, "gcnArchName": b"gfx942:sramecc+:xnack-"}
    properties = {"multiProcessorCount": 80} | properties
    runtime = types.SimpleNamespace(
        is_hip=hip, getDeviceCount=device_count, CUDARuntimeError=RuntimeFailureError,
        getDeviceProperties=lambda index: properties | (gpus[index] if gpus else {}),
        memGetInfo=lambda: (2**30, 2**34),
    )  # fmt: skip
    cupy.cuda = types.SimpleNamespace(
        runtime=runtime, Device=lambda index: types.SimpleNamespace(use=lambda: use(index)),
        compiler=types.SimpleNamespace(CompileException=CompileError),
        Stream=lambda non_blocking: types.SimpleNamespace(use=lambda: None),
    )  # fmt: skip
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    cupy.RawModule = module
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(CupyDevice, "_load_blas", lambda *_: None)
    return cupy


def refusal(make=CupyDevice, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        make(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
