"""`hipgpt doctor`: tests this machine."""

import faulthandler
import json
import sys

import click

from gpt.commands.command_line import command
from gpt.commands.options import DEVICE, JSON


@command(
    "doctor",
    short_help="Test this machine: list its parts, check every operation.",
    sections={
        "Options": (DEVICE, JSON),
    },
    epilog="hipgpt doctor",
)  # fmt: skip
def examine_machine(device: str, as_json: bool) -> None:
    """Test this machine, and print a report that can be pasted into a bug report.

    Lists GPUs and libraries. Compares every operation with NumPy, on the GPU in each precision and on the CPU,
    and takes some training steps. Times a few operations. The exit status is 1 if a result is wrong. The report leaves
    out the user's name, the home folder and the host's name.
    """
    from gpt import doctor
    from gpt.system.console import Console

    faulthandler.enable(2)  # so that a crash in a driver or a library says at which check it was
    console = Console()
    diagnosis = doctor.examine(device, (lambda text: None) if as_json else console.line, console)
    if as_json:
        click.echo(json.dumps(diagnosis.to_json(), indent=2))
    if diagnosis.failed:
        sys.exit(1)
