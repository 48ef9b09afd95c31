"""Compile a kernel for a type that does not exist."""

from gpt.ops.gpu.device import CupyDevice


def main() -> None:
    CupyDevice().kernel("gelu.hip", "activation", {"T": "no_such_type", "WIDTH": 1, "ACTIVATION": "gelu"})
