"""Estimates the time of a launch, its share of the GPU's peak rates, and the unit that limits it."""

import functools
import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpt.ops.gpu.sources import Instance
from tests.support.amd.compile import PROCESSORS, Kernel, compile_source
from tests.support.amd.emulator import CodeObject
from tests.support.amd.speed.chips import CHIPS
from tests.support.amd.speed.instructions import Instruction, Unit, disassembled
from tests.support.amd.speed.launches import PRODUCTS, Launch
from tests.support.amd.speed.schedule import Schedule, schedule
from tests.support.amd.speed.trace import Trace, trace
from tests.support.amd.speed.triton_peer import TritonLaunch


class Estimate(NamedTuple):
    """One launch on one GPU. Shares are 0 to 1."""

    kernel: Kernel
    microseconds: float
    of_matrix_peak: float  # needed operations / those that all matrix units could do; 0 without products
    of_bandwidth: float  # needed bytes / those that memory could move
    fetched: float  # bytes of all cache lines that loads and stores touch / needed bytes
    copies: float  # moves between accumulation and vector registers, share of the vector ALU's clocks
    busy: Schedule

    @property
    def limit(self) -> str:
        """The busiest unit."""
        units = ("matrix", "valu", "exp", "lds", "l1", "l2", "memory")
        return max(units, key=lambda unit: getattr(self.busy, unit))


class Launchable(Protocol):
    """What an estimate of compiled code needs to know of a launch."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]
    flops: int


def estimate(launch: Launch, target: str) -> Estimate:
    """Estimate a launch of one of our kernels, as clang compiles it."""
    return _estimate(launch, target, *_compiled(launch.instance, target))


def estimate_triton(launch: TritonLaunch, target: str) -> Estimate:
    code = CodeObject(launch.code, launch.shared_bytes)
    return _estimate(launch, target, code, disassembled(launch.code, target))


def _estimate(launch: Launchable, target: str, code: CodeObject, kernels: dict[str, list[Instruction]]) -> Estimate:
    """Estimate a launch whose arrays are not in a cache yet. Only those of products are, because workgroups share them.

    A workgroup from the middle of the grid stands for all. For causal attention the longest and the shortest workgroup
    of a head stand for all, because work grows evenly from one to the other. They are the first and the last one of the
    first head.
    """
    chip = CHIPS[target]
    kernel, instructions = code.kernels[launch.name], kernels[launch.name]
    threads, workgroups = math.prod(launch.block), math.prod(launch.grid)
    sizes = (*launch.grid, 1)[:2]
    places = [(0, 0), (_blocks_of_head(launch) - 1, 0)] if launch.name in PRODUCTS else [tuple(n // 2 for n in sizes)]
    traces = [trace(code, launch.name, instructions, place, launch.block, launch.arguments) for place in places]
    units = min(chip.units, workgroups)
    resident = min(math.ceil(workgroups / units), _resident(kernel, threads, target))
    at_once = workgroups <= 2 * resident * units
    total = math.ceil(workgroups / units) if at_once else 6 * resident
    # If all workgroups run at once, the unit with the most of them ends last. Memory serves workgroups, whose demands
    # are equal, so that unit has a larger share of the bandwidth than the others.
    share = total / workgroups if at_once else 1 / units
    model = chip._replace(units=units, bandwidth=chip.bandwidth * share * units)
    result = schedule(model, instructions, traces, resident, total, from_memory=not launch.flops)
    clocks = result.clocks if at_once else result.clocks / result.workgroups * workgroups / units
    seconds = clocks / chip.clock / 1e9
    needed = sum(each.needed_bytes for each in traces) / len(traces) * workgroups
    return Estimate(
        kernel,
        seconds * 1e6,
        launch.flops / seconds / (chip.units * 4 * chip.matrix_flops * chip.clock * 1e9),
        needed / seconds / (chip.bandwidth * 1e9),
        _fetched(traces, chip.line),
        _copies(instructions, traces),
        result,
    )


def _blocks_of_head(launch: Launchable) -> int:
    """The workgroups of a head. In a grid of one dimension, that of our kernels, the heads follow one another."""
    lse = next(x for x in launch.arguments if isinstance(x, np.ndarray) and x.dtype == np.float32)
    return launch.grid[0] if len(launch.grid) > 1 else launch.grid[0] // math.prod(lse.shape[:-1])


@functools.cache
def _compiled(instance: Instance, target: str) -> tuple[CodeObject, dict[str, list[Instruction]]]:
    code = compile_source(instance.source, "clang", target)
    return CodeObject(code), disassembled(code, target)


def _resident(kernel: Kernel, threads: int, target: str) -> int:
    """Workgroups of `threads` threads that a unit has room for."""
    processor = PROCESSORS[target]
    per_simd = processor.waves_per_simd(kernel.vgprs, kernel.sgprs, kernel.lds, threads)
    return max(1, int(per_simd * processor.SIMDS // math.ceil(threads / processor.wave)))


def _fetched(traces: list[Trace], line: int) -> float:
    lines = sum(int(wave["lines"].sum()) for each in traces for wave in each.waves)
    return lines * line / max(1, sum(each.needed_bytes for each in traces))


def _copies(instructions: list[Instruction], traces: list[Trace]) -> float:
    executed = np.concatenate([wave["instruction"] for each in traces for wave in each.waves])
    counts = np.bincount(executed, minlength=len(instructions))
    clocks = [(i, i.clocks * count) for i, count in zip(instructions, counts, strict=True)]
    copies = sum(c for i, c in clocks if i.name.startswith("v_accvgpr"))
    return copies / max(1, sum(c for i, c in clocks if i.unit in (Unit.VALU, Unit.EXP)))
