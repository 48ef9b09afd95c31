"""The vendor's matrix products, tried in a process of their own: python -m gpt.doctor.products DEVICE PRECISION ….

Some versions of hipBLASLt end the program, or hang, on GPUs that they do not know, as soon as they start or in a
product. The doctor would have no report then.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence

from gpt import ops as operations
from gpt.doctor import selftest
from gpt.errors import UserError
from gpt.system import process

PATIENCE = 300.0  # seconds for all products, and for compiling the kernels that they need
COMMAND = process.command("gpt.doctor.products")


def fault(device: str, precisions: Sequence[str]) -> str:
    """How the library ends or stops a program that asks for all products of the self-test; "" if it does not.

    Precisions that the device lacks are passed over. For example "it ends the program by SIGABRT". Wrong results, and
    errors, are left to the self-test.
    """
    try:
        status = subprocess.run(
            [*COMMAND, device, *precisions], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it does not answer within {PATIENCE:.0f} s"
    return f"it ends the program by {signal.Signals(-status).name}" if status < 0 else ""


def main(device: str, *precisions: str) -> None:
    """Ask the library, if there is one, for the products of the self-test, whatever the results are."""
    for precision in precisions:
        try:
            ops = operations.select(device, precision)
        except UserError:  # there is no such device, or it lacks this precision
            continue
        for check in selftest.checks(ops) if ops.has_vendor_blas else ():
            if check.operation in selftest.PRODUCTS:
                check.finding()


if __name__ == "__main__":
    main(*sys.argv[1:])
