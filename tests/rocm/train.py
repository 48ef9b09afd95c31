"""Train a tiny model in each of some precisions, and print what came of it as JSON."""

import json
import sys

from gpt.ops import gpu, select
from tests.rocm.simulated import launches
from tests.rocm.tiny import train


def main(*precisions: str) -> None:
    """{precision: {description, notes, losses, weights, and the kernels launched}}."""
    gpu.CACHE_BYTES = 0  # of the library this model asks what a larger one would
    results = {}
    for precision in precisions:
        launches.clear()
        ops = select("gpu", precision)
        losses, weights = train(ops)
        results[precision] = {
            "description": ops.description, "notes": ops.notes, "losses": losses, "weights": weights.tolist(),
            "kernels": list(launches),
        }  # fmt: skip
    json.dump(results, sys.stdout)
