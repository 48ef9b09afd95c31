"""Train a tiny model in each of the given precisions, let it write, and print the results as JSON."""

import json
import sys

from gpt.ops import select
from gpt.ops.gpu import products
from tests.support.rocm.simulated import launches
from tests.support.rocm.tiny import train, weights, write


def main(*precisions: str) -> None:
    """Print {precision: {description, notes, losses, weights, kernels (that training launched), ids (written)}}."""
    products.CACHE_BYTES = 0  # so that this tiny model asks hipBLASLt for the epilogues of a larger one
    results = {}
    for precision in precisions:
        launches.clear()
        ops = select("gpu", precision)
        model, losses = train(ops)
        results[precision] = {
            "description": ops.description, "notes": ops.notes, "losses": losses, "weights": weights(model).tolist(),
            "kernels": list(launches), "ids": write(model),
        }  # fmt: skip
    json.dump(results, sys.stdout)
