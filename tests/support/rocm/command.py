"""The `hipgpt` command on simulated GPUs. `--gpus N` starts the other ranks with this command line, so they are too."""

import sys

from gpt.cli import main as hipgpt
from gpt.doctor import products


def main(*arguments: str) -> None:
    products.COMMAND = [sys.executable, "-m", "tests.support.rocm", "products"]  # the doctor's other process
    hipgpt(arguments)
