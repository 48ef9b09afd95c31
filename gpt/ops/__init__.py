"""The operations of a GPT, behind one interface for every kind of device.

`select` returns an `Operations` object (interface.py). Everything above it (model, optimizer, trainer) calls its
methods and knows neither which array library runs nor which memory holds the arrays. `cpu/` has the reference, in
NumPy, and a faster version with numba; `gpu/` runs the kernels in kernels/.
"""

import importlib.util
import os
import re

from gpt.errors import UserError, first_line, shown
from gpt.ops.interface import Operations


def select(
    device: str = "auto", precision: str = "auto", training: bool = False, processes: int = 1, blas: str = "auto"
) -> Operations:
    """The operations for `--device` auto, cpu, gpu or gpu:N and `--precision` auto, fp32, tf32 or bf16.

    auto is the first GPU that works, a card before an integrated one, else the CPU; gpu is the same, but never the CPU.
    Precision auto is bf16 if the GPU has matrix units for it, else fp32. For `training` on the CPU, numba is used if it
    is installed; it starts too slowly for anything shorter. The CPUs are shared out to this number of `processes`.
    `blas` is --blas: whether the library of a GPU's vendor computes matrix products (vendor), hipgpt's own kernel does
    (own), or the library if it is there and right (auto).
    Raises UserError if the device does not exist here or lacks that precision, or if that library is missing.
    """
    if not re.fullmatch(r"auto|cpu|gpu(:[0-9]{1,9})?", device):
        raise UserError(f"--device is {shown(device, quoted=False)}, but must be auto, cpu, gpu or gpu:N")
    gpu, note = None, None
    if device != "cpu":
        try:
            from gpt.ops.gpu.device import CupyDevice

            gpu = CupyDevice(int(device[4:]), blas) if ":" in device else CupyDevice.best(blas)
        except UserError as error:
            if device != "auto":
                raise
            if importlib.util.find_spec("cupy"):
                note = f"Note: on the CPU, because {error}"
            elif vendor := _driver():
                note = f"Note: on the CPU, though this machine has a driver for {vendor} GPUs: {error}"
    if gpu is None:
        if precision in ("tf32", "bf16"):
            raise UserError(f"--precision {precision} needs a GPU: leave it out, or use --device gpu")
        if blas != "auto":
            raise UserError(f"--blas {blas} needs a GPU: leave it out, or use --device gpu")
        ops = _cpu(training, processes)
        ops.notes = [note, *ops.notes] if note else ops.notes
        return ops
    if blas == "vendor" and gpu.blas is None:
        raise UserError(f"--blas vendor: {gpu.blas_missing}; or use --blas own")
    from gpt.ops.gpu.operations import GpuOps

    if precision == "bf16" and not gpu.has_bf16:
        raise UserError(f"--precision bf16 needs matrix units that {gpu.description} lacks: use --precision fp32")
    if precision == "tf32" and not gpu.target.startswith("sm_"):
        raise UserError(f"--precision tf32 exists on NVIDIA GPUs alone, not on {gpu.description}: use fp32 or bf16")
    return GpuOps(gpu, {"auto": "bf16" if gpu.has_bf16 else "fp32"}.get(precision, precision))


def _driver() -> str | None:
    """The vendor of the GPUs that Linux has a driver for here: AMD, NVIDIA or None."""
    files = {"AMD": "/dev/kfd", "NVIDIA": "/proc/driver/nvidia/version"}
    return next((vendor for vendor, file in files.items() if os.path.exists(file)), None)


def _cpu(training: bool, processes: int) -> Operations:
    """CpuOps, or for training NumbaOps, if numba is installed and works."""
    from gpt.ops.cpu.operations import CpuOps
    from gpt.system.threads import available_threads

    threads = available_threads(processes)
    if not (training and importlib.util.find_spec("numba")):
        return CpuOps(threads)
    try:
        from gpt.ops.cpu.numba_operations import NumbaOps

        return NumbaOps(threads)
    except Exception as error:  # a broken installation may raise any, and so may a folder that takes no cache
        ops = CpuOps(threads)
        ops.notes = [f"Note: numba is not used, which makes steps slower: {first_line(error)}"]
        return ops
