"""The process in which a program of this folder sees a simulated GPU: `python -m tests.rocm PROGRAM [argument …]`."""

import importlib
import sys

from gpt.errors import UserError
from tests.rocm.simulated import simulate

alive = simulate()
try:
    importlib.import_module(f"tests.rocm.{sys.argv[1]}").main(*sys.argv[2:])
except UserError as error:
    sys.exit(f"Error: {error}")
