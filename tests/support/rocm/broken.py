"""Ask for a kernel with a type that does not exist, so that it does not compile."""

from gpt.ops.gpu.device import CupyDevice
from gpt.ops.gpu.launch import Kernels


def main() -> None:
    Kernels(CupyDevice(), "no_such_type")("gelu.hip", "activation", WIDTH=1, ACTIVATION="gelu")
