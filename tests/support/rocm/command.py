"""The `hipgpt` command on simulated GPUs. `--gpus N` starts the other ranks with this command line, so they are too."""

from gpt.cli import main as hipgpt


def main(*arguments: str) -> None:
    hipgpt(arguments)
