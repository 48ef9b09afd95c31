"""How the doctor starts a process of its own."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]  # the folder that has the package gpt


def command(module: str) -> list[str]:
    """The command that runs a module's `main`."""
    return [sys.executable, "-m", module]


def environment(**changes: str) -> dict[str, str]:
    """The environment of this process with `changes`, in which Python also finds the package gpt."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **changes}
