"""Runs schedule.cpp, a model of how a unit of a GPU executes workgroups. It is compiled when it is first needed."""

import ctypes
import functools
import math
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.support.amd.speed.chips import Chip
from tests.support.amd.speed.instructions import Instruction
from tests.support.amd.speed.trace import Trace
from tests.support.executor import compiler

SOURCE = Path(__file__).with_name("schedule.cpp")
_INSTRUCTION = np.dtype([(name, "i4") for name in ("unit", "clocks", "bytes")] + [("waits", "i4", 4)] + [
    (name, "i4") for name in ("registers", "writes", "reads")
])  # fmt: skip


class _Wave(ctypes.Structure):
    _fields_ = [("steps", ctypes.c_void_p), ("count", ctypes.c_int32), ("workgroup", ctypes.c_int32)]


class _Chip(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("is_cdna", "resident", "total")] + [
        (name, ctypes.c_double)
        for name in ("line", "l1_bytes", "line_clocks", "l2_bytes", "memory_bytes", "cached_latency", "memory_latency")
    ]


class Schedule(NamedTuple):
    """The result of schedule.cpp: clocks, and the share of them in which each part of the unit was busy, 0 to 1.

    If there are several parts of a kind, as in four SIMDs, the share is their mean.
    """

    clocks: float
    workgroups: float  # that ended in these clocks
    matrix: float
    valu: float
    exp: float
    lds: float
    l1: float
    l2: float
    memory: float


def schedule(
    chip: Chip, instructions: list[Instruction], traces: list[Trace], resident: int, total: int, from_memory: bool
) -> Schedule:
    """Execute `total` workgroups, which are `traces` in turn, `resident` of them at a time.

    If `from_memory`, bytes that a workgroup touches for the first time come from memory, else from a cache. If `total`
    is more than 2 * resident, the clocks are those of the steady state: they begin when the first `resident` workgroups
    have ended and end when the last one starts. Else they are those of the whole run.
    """
    table = np.zeros(len(instructions), _INSTRUCTION)
    registers: list[int] = []
    for row, i in zip(table, instructions, strict=True):
        row["unit"], row["clocks"], row["bytes"], row["waits"] = i.unit, i.clocks, i.bytes * (1 + i.pair), i.waits
        row["registers"], row["writes"], row["reads"] = len(registers), len(i.writes), len(i.reads)
        registers += [*i.writes, *i.reads]
    numbers = np.array(registers, np.int16)
    steps = [(wave, group) for group, trace in enumerate(traces) for wave in trace.waves]
    waves = (_Wave * len(steps))(*(_Wave(wave.ctypes.data, len(wave), group) for wave, group in steps))
    model = _Chip(
        chip.is_cdna, resident, total, chip.line, chip.l1_bytes, chip.line_clocks, chip.l2_bytes,
        chip.memory_bytes if from_memory else math.inf,
        chip.cached_latency, chip.memory_latency if from_memory else chip.cached_latency,
    )  # fmt: skip
    result = (ctypes.c_double * len(Schedule._fields))()
    pointers = (table.ctypes.data_as(ctypes.c_void_p), numbers.ctypes.data_as(ctypes.c_void_p))
    _library().schedule(ctypes.byref(model), *pointers, waves, len(steps), result)
    return Schedule(*result)


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.so"
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([compiler(), *flags, "-o", path, SOURCE], check=True)
        return ctypes.CDLL(str(path))
