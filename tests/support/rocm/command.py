"""The `hipgpt` command on simulated GPUs. `--gpus N` starts the other ranks with this command line, so they are too."""

import sys

from gpt.cli import main as hipgpt
from gpt.doctor import ahead, products


def main(*arguments: str) -> None:
    for module in (ahead, products):  # the doctor's other processes
        module.COMMAND = [sys.executable, "-m", "tests.support.rocm", module.__name__.rpartition(".")[2]]
    hipgpt(arguments)
