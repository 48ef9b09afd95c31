"""Train a tiny model in each of some precisions, let it write, and print what came of it as JSON."""

import json
import sys

from gpt.ops import select
from gpt.ops.gpu import products
from tests.support.rocm.simulated import launches
from tests.support.rocm.tiny import train, weights, write


def main(*precisions: str) -> None:
    """{precision: {description, notes, losses, weights, the kernels that training launched, and the ids written}}."""
    products.CACHE_BYTES = 0  # of the library this model asks what a larger one would
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
