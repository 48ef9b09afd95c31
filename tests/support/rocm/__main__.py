"""The process in which a program of this folder sees a simulated GPU: `python -m tests.support.rocm PROGRAM …`."""

import importlib
import sys

from gpt.errors import UserError
from tests.support.rocm.simulated import simulate

alive = simulate()
try:
    importlib.import_module(f"tests.support.rocm.{sys.argv[1]}").main(*sys.argv[2:])
except UserError as error:
    sys.exit(f"Error: {error}")
