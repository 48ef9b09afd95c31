"""Ask for a kernel with a type that does not exist, so that it does not compile."""

from gpt.ops.gpu.device import CupyDevice


def main() -> None:
    CupyDevice().kernel("gelu.hip", "activation", {"T": "no_such_type", "WIDTH": 1, "ACTIVATION": "gelu"})
