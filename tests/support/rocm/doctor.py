"""`hipgpt doctor` on simulated GPUs, with the operations that SIMULATED_CHECKS names, without training and times.

All of its checks would take the emulator hours.
"""

import os

from gpt import doctor
from gpt.doctor import selftest
from tests.support.rocm import command


def only_some_checks() -> None:
    """Leave out the checks of all operations but those that the environment names, in all shapes but their first."""
    names, checks = os.environ["SIMULATED_CHECKS"].split(), selftest.checks
    selftest.CASES = {name: cases[:1] for name, cases in selftest.CASES.items() if name in names}
    selftest.checks = lambda ops: (check for check in checks(ops) if check.operation in names)


def main(*arguments: str) -> None:
    only_some_checks()
    doctor.measure = lambda ops: []
    command.main("doctor", *arguments)
