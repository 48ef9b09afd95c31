"""The devices that operations are tested on: a GPU if there is one, a CPU in place of every kind of GPU, and numba."""

import functools
import os
import zlib
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from gpt.errors import UserError
from gpt.ops.gpu.interface import Device
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.interface import Operations
from tests.support.amd.emulator import TARGETS, EmulatorDevice, unavailable


@functools.cache
def gpu():
    """This machine's GPU; skips if there is none."""
    pytest.importorskip("cupy")
    from gpt.ops.gpu.device import CupyDevice

    try:
        return CupyDevice()
    except UserError as error:
        pytest.skip(f"no GPU: {error}")


@functools.cache
def executor(layout: str, order: str = "forward"):
    """The CPU executor for one tile layout; skips if there is no C++ compiler."""
    from tests.support.executor import ExecutorDevice, compiler

    if compiler() is None:
        pytest.skip("no C++ compiler: install g++")
    return ExecutorDevice(layout, order)


@functools.cache
def emulator(target: str):
    """An emulated AMD GPU; skips if there is no emulator."""
    if unavailable():
        pytest.skip(unavailable())
    return EmulatorDevice(target)


class Numba:
    """The CPU with numba, as a device."""

    has_bf16 = has_tf32 = False


@functools.cache
def numba_cpu() -> Numba:
    """The CPU with numba; skips if the packages of `pip install "hipgpt[numba]"` are missing."""
    pytest.importorskip("numba")
    pytest.importorskip("scipy")
    return Numba()


def operations(device: Device | Numba, precision: str) -> Operations:
    """The operations of `device`, in "fp32", "tf32" or "bf16"; skips if it lacks that precision."""
    if precision == "bf16" and not device.has_bf16:
        pytest.skip("no matrix unit")
    if precision == "tf32" and not device.has_tf32:
        pytest.skip("tf32 is NVIDIA's")
    if isinstance(device, Numba):
        from gpt.ops.cpu.numba_operations import NumbaOps

        return NumbaOps(threads=4)
    return GpuOps(device, precision)


def absent(make: Callable[[], object]) -> str | None:
    """What is not installed here that a device needs, as far as that can be said without importing it."""
    if getattr(make, "func", None) is emulator:
        return unavailable()
    packages = {gpu: ("cupy",), numba_cpu: ("numba", "scipy")}.get(make, ())
    return next((f"{package} is not installed" for package in packages if not find_spec(package)), None)


def present(*devices):
    """Those of the devices that are not absent: to collect thousands of tests and skip each takes half a minute."""
    return [device for device in devices if not absent(*device.values)]


# Layouts of a matrix unit that the CPU executor stands in for, and for each an order of the threads. NVIDIA's has warps
# of 32 threads, that of AMD's CDNA warps of 64, those of RDNA 3 and 4 warps of 32. HIPGPT_LAYOUTS names those to test.
LAYOUTS = {"mma": "forward", "mfma": "seeded", "wmma11": "reversed", "wmma12": "seeded"}
TESTED = os.environ.get("HIPGPT_LAYOUTS", "mma").split()
if unknown := set(TESTED) - set(LAYOUTS):
    raise pytest.UsageError(f"HIPGPT_LAYOUTS has {' '.join(unknown)}, but the layouts are {' '.join(LAYOUTS)}")


def one_layout_each(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests, but each slow case on only one of AMD's layouts: the layout is one more axis of tests.support.grids.

    So every pair of values is tested in each layout, and every combination of them in NVIDIA's and in one of AMD's.
    Which one that is depends on the case's name alone, so that the processes of pytest-xdist choose the same.
    """
    cases = defaultdict(list)  # a slow case's name without the layout: its tests on AMD's layouts
    for item in items:
        make = item.callspec.params.get("device") if hasattr(item, "callspec") else None
        layout = make.args[0] if getattr(make, "func", None) is executor else "mma"
        if layout != "mma" and item.get_closest_marker("slow"):
            cases[item.nodeid.replace(layout, "")].append(item)
    kept = {tests[zlib.crc32(case.encode()) % len(tests)] for case, tests in cases.items()}
    dropped = {item for tests in cases.values() for item in tests} - kept
    return [item for item in items if item not in dropped]


# This machine's GPU; a stand-in on the CPU for each tested layout; AMD's machine code on an emulator; and numba.
GPU = pytest.param(gpu, id="gpu", marks=pytest.mark.gpu)
EXECUTORS = [pytest.param(functools.partial(executor, each, LAYOUTS[each]), id=each) for each in TESTED]
EMULATORS = [pytest.param(functools.partial(emulator, each), id=each, marks=pytest.mark.amd) for each in TARGETS]
NUMBA = pytest.param(numba_cpu, id="numba")
EVERY = [GPU, *EXECUTORS, *EMULATORS, NUMBA]
GPUS, DEVICES = present(GPU, *EXECUTORS, *EMULATORS), present(*EVERY)
