"""The dozen operations a GPT needs, each as forward and backward, behind one face per kind of device.

`select` returns an operations object. Everything above it (model, optimizer, trainer) calls its methods and knows
neither which array library runs nor where memory lies. `cpu.py` is the reference: its docstrings define every one.
"""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from gpt.errors import UserError

Array = Any  # a NumPy array on the CPU


@dataclass(frozen=True)
class Dropout:
    """One place where elements are zeroed with probability `rate` and the rest scaled by 1 / (1 - rate).

    The mask is a pure function of key, site, and the element's row and column, so backward draws it again instead of
    storing it and a resumed run replays it. `key` is a uint32 [2] array (seed, counter) in the device's memory;
    `site` numbers the places within one model.
    """

    rate: float
    key: Array
    site: int


def select(device: str = "auto") -> Any:
    """The operations object for `--device` auto, cpu, gpu or gpu:N.

    Raises UserError when the device does not exist here.
    """
    if not re.fullmatch(r"auto|cpu|gpu(:[0-9]+)?", device):
        raise UserError(f"--device is {device}, but must be auto, cpu, gpu or gpu:N")
    if device.startswith("gpu"):
        if importlib.util.find_spec("cupy") is None:
            raise UserError(
                f"--device {device} needs CuPy: pip install 'hipgpt[rocm]' for an AMD GPU, 'hipgpt[cuda12]' or "
                "'hipgpt[cuda13]' for an NVIDIA GPU; --device cpu needs nothing"
            )
        raise UserError(f"--device {device}: this version of hipgpt has no GPU kernels yet, use --device cpu")
    from gpt.ops.cpu import CpuOps

    return CpuOps()
