"""A process that compiles kernels for `hipgpt doctor`, on simulated GPUs."""

import os

from gpt.doctor import ahead
from tests.support.rocm.doctor import only_some_checks


def main(*arguments: str) -> None:
    if "SIMULATED_CHECKS" in os.environ:
        only_some_checks()
    ahead.main(*arguments)
