"""`hipgpt doctor`: the GPUs and libraries of this machine, a check of every operation, and the times of some.

inventory.py lists what is there. ahead.py lets other processes compile kernels. products.py finds out whether the
vendor's library crashes the program. selftest.py runs checks of every operation (layers.py, updates.py), each as a
trial (trial.py) within bounds that follow from the roundings (bounds.py), and some training steps. speed.py times a few
operations.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt import ops as operations
from gpt.doctor import ahead, inventory, products, selftest
from gpt.doctor.inventory import private
from gpt.doctor.selftest import Failure
from gpt.doctor.speed import Speed, measure
from gpt.errors import UserError, first_line, shown
from gpt.ops.interface import Operations
from gpt.system.console import Console

PRECISIONS = ("bf16", "fp32", "tf32")  # in the order of the self-test
MOST_SHOWN = 20  # failures of a device in the text; JSON has all

OVERRIDE = "HSA_OVERRIDE_GFX_VERSION"  # lets ROCm take a GPU for another

Say = Callable[[str], object]  # prints lines


@dataclass
class Patient:
    """A device in one precision, with the findings of the self-test."""

    ops: Operations
    checks: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def wrong(self) -> set[str]:
        """The operations that computed something wrong."""
        return {failure.operation for failure in self.failures}

    @property
    def name(self) -> str:
        description, precision = private(self.ops.description), self.ops.precision
        return description if description.endswith(precision) else f"{description}, {precision}"

    def __str__(self) -> str:
        if not self.failures:
            return f"  {self.name}: {self.checks} checks passed"
        lines = [f"  {self.name}: {len(self.failures)} of {self.checks} checks FAILED"]
        lines += [f"    {failure}" for failure in self.failures[:MOST_SHOWN]]
        more = len(self.failures) - MOST_SHOWN
        return "\n".join([*lines, f"    … and {more} more: --json has all"] if more > 0 else lines)


@dataclass
class Diagnosis:
    """All that the doctor found."""

    inventory: dict[str, dict[str, str]]
    chosen: str = ""  # the device that --device takes
    notes: list[str] = field(default_factory=list)  # why, and what else its user should know
    library: str = ""  # how the vendor's library for products ends a program; then nothing else was done with it
    patients: list[Patient] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    not_timed: str = ""  # why the remaining operations were not timed

    @property
    def failed(self) -> int:
        return bool(self.library) + sum(len(patient.failures) for patient in self.patients)

    @property
    def verdict(self) -> str:
        count = bool(self.library) + sum(patient.checks for patient in self.patients)
        return f"{self.failed} of {count} checks FAILED" if self.failed else f"all {count} checks passed"

    @property
    def advice(self) -> str:
        return advice(self.patients, bool(self.library))

    def to_json(self) -> dict[str, Any]:
        return {
            **self.inventory,
            "Device": {"chosen": self.chosen, "notes": self.notes},
            "library": self.library,
            "Self-test": [
                {
                    "device": patient.name,
                    "checks": patient.checks,
                    "failures": [failure._asdict() for failure in patient.failures],
                }
                for patient in self.patients
            ],
            "Speed": [speed.to_json() for speed in self.speeds],
            "not_timed": self.not_timed,
            "verdict": self.verdict,
            "advice": self.advice,
        }


def examine(device: str, say: Say, console: Console) -> Diagnosis:
    """Examine this machine, and the devices that `device` names. `say` prints each part of the report when it is known.

    With auto these devices are the GPU that auto takes, in every precision that it has, and the CPU. Raises UserError
    if `device` does not exist or cannot be used.
    """
    found = Diagnosis(inventory.inventory())
    for section, facts in found.inventory.items():
        width = max(map(len, facts), default=0)
        lines = [f"  {label:<{width}}  {fact}" for label, fact in facts.items()]
        say("\n".join([f"{section}:", *lines] if lines else [f"{section}: nothing that matters is set"]))
    with ahead.compiling(device, PRECISIONS):
        # Another process tries the vendor's library before this one starts it, because it may end a program.
        if device != "cpu":
            with console.progress("Testing", 1) as advance:
                advance(0, status="the vendor's library for matrix products")
                found.library = products.fault(device, PRECISIONS)
        devices = _devices(device, "own" if found.library else "auto")
        found.chosen, found.notes = private(devices[0].description), list(map(private, devices[0].notes))
        say("\n".join(["Device:", *(f"  {line}" for line in (found.chosen, *found.notes))]))
        say("Self-test:")
        if found.library:
            say(f"  the vendor's library for matrix products FAILED: {found.library}; all else is done without it")
        _test(found, devices, say, console)
    _time(found, devices[0], say)
    say(f"\nVerdict: {found.verdict}")
    if found.failed:
        say(f"What to do: {found.advice}")
    return found


def _devices(device: str, blas: str) -> list[Operations]:
    """The device to be examined in its own precision, then in its others; with auto, the CPU too.

    `blas` says what computes a GPU's products, as --blas does.
    """
    chosen = [_select(device, training=True, blas=blas)]
    if not chosen[0].is_cpu:
        for precision in PRECISIONS:
            if precision != chosen[0].precision:
                try:
                    chosen.append(_select(device, precision, blas=blas))
                except UserError:  # the GPU lacks it
                    continue
        if device == "auto":
            chosen.append(_select("cpu", training=True))
    numpy = _select("cpu")  # numba's operations are for training alone
    return [*chosen, numpy] if chosen[-1].is_cpu and type(chosen[-1]) is not type(numpy) else chosen


def _select(device: str, precision: str = "auto", training: bool = False, blas: str = "auto") -> Operations:
    try:
        return operations.select(device, precision, training=training, blas=blas)
    except UserError:
        raise
    except Exception as error:  # CuPy and drivers may raise any
        raise UserError(f"--device {device} cannot be used: {first_line(error)}; try --device cpu") from error


def _test(found: Diagnosis, devices: Sequence[Operations], say: Say, console: Console) -> None:
    total, done = sum(1 for ops in devices for _ in selftest.checks(ops)), 0
    for ops in devices:
        patient = Patient(ops)
        with console.progress("Testing", total, completed=done) as advance:
            for check in selftest.checks(ops):
                advance(done, status=f"{patient.name}: {check.operation}")
                if finding := check.finding():
                    patient.failures.append(Failure(check.operation, ops.precision, check.shape, private(finding)))
                done += 1
        patient.checks = done - sum(each.checks for each in found.patients)
        found.patients.append(patient)
        say(str(patient))


def _time(found: Diagnosis, ops: Operations, say: Say) -> None:
    say(f"Speed of {found.patients[0].name}:")
    try:
        for speed in measure(ops):
            found.speeds.append(speed)
            say(f"  {speed}")
    except Exception as error:  # a device that computes wrongly may raise any
        found.not_timed = private(first_line(error))
        say(f"  the rest is not timed: {found.not_timed}")


def advice(patients: Sequence[Patient], fatal_library: bool = False) -> str:
    """What to do about the failures of the devices, or about a library that crashes the program; "" without any."""
    ill = [patient for patient in patients if patient.failures]
    if not ill and not fatal_library:
        return ""
    ways = []
    on_gpu = [patient for patient in ill if not patient.ops.is_cpu]
    if (on_gpu or fatal_library) and (other := os.environ.get(OVERRIDE)):
        ways.append(f"unset {OVERRIDE} ({shown(other, quoted=False)}), which hipgpt does not need")
    if fatal_library or any(patient.ops.has_vendor_blas and patient.wrong <= selftest.PRODUCTS for patient in on_gpu):
        ways.append("use hipgpt's own matrix products, by --blas own")
    sound = {patient.ops.precision for patient in patients if not patient.ops.is_cpu and not patient.failures}
    if on_gpu and "fp32" in sound:
        ways.append("use --precision fp32")
    if len(on_gpu) == len(ill):
        ways.append("use --device cpu")
    else:
        ways.append("install NumPy and numba anew")
    return f"{', or '.join(ways)}; and report this, with the whole output"
