"""How near the error of each kernel comes to its bound on each emulated target.

Emulation is slow, so this module also chooses the test cases that suffice.
"""

from collections import defaultdict
from typing import Any

import numpy as np

from tests.support.amd.emulator import TARGETS, EmulatorDevice

_largest: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)  # (kernel, precision) -> target -> error / bound


def note(ops: Any, error: np.ndarray, bound: np.ndarray) -> None:
    """Remember the largest ratio of `error` to `bound` for all kernels that `ops`, made for a single test, has run."""
    if not isinstance(getattr(ops, "device", None), EmulatorDevice):
        return
    relative = float(np.max(np.divide(error, bound, out=np.zeros_like(error), where=error > 0)))
    for name, *_ in ops._kernel._compiled:
        targets = _largest[name, ops.precision]
        targets[ops.device.target] = max(relative, targets.get(ops.device.target, 0))


def table() -> list[str]:
    """The noted ratios, with a line for each kernel and precision and a column for each target; empty without any."""
    if not _largest:
        return []
    lines = [f"{'kernel, largest error / bound':40}" + "".join(f"{target:>9}" for target in TARGETS)]
    for (name, precision), targets in sorted(_largest.items()):
        cells = [f"{targets[target]:9.3f}" if target in targets else f"{'-':>9}" for target in TARGETS]
        lines.append(f"{name + ' ' + precision:40}" + "".join(cells))
    return lines


def few(items: list[Any]) -> list[Any]:
    """Keep every fourth of the tests of a function on each emulated target, because emulation is slow.

    Each target keeps another fourth. So each function is tested on each target in each precision, and each case is
    tested on some target. Tests without an emulator are all kept.
    """
    cases = defaultdict(list)
    for item in items:
        if target := _target(item):
            cases[item.originalname, target, item.callspec.params.get("ops")].append(item)
    dropped = set()
    for (_, target, precision), group in cases.items():
        turns = min(len(TARGETS), len(group))
        turn = (TARGETS.index(target) + (precision == "bf16")) % turns
        dropped |= {item for index, item in enumerate(group) if index % turns != turn}
    return [item for item in items if item not in dropped]


def _target(item: Any) -> str | None:
    """The emulated GPU that a test of tests/support/devices.py's devices runs on."""
    make = item.callspec.params.get("device") if hasattr(item, "callspec") else None
    return make.args[0] if getattr(make, "args", ())[:1] and make.args[0] in TARGETS else None
