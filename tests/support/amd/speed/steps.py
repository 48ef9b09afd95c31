"""The time of a whole training step: the sum of the estimates of its launches.

The vendor's library computes the matrix products, as it does for users. Their time is not estimated. It follows from
rates that others have measured.
"""

import sys
from collections import Counter
from typing import NamedTuple

from gpt.config import ModelConfig
from tests.support.amd.speed.chips import CHIPS
from tests.support.amd.speed.estimate import estimate
from tests.support.amd.speed.launches import PRODUCTS, training_step

# TFLOP/s of PyTorch's products of 4096 x 4096 matrices: bf16 on an MI300X (gau-nernst/learn-cuda, 02d_matmul_cdna3), on
# an RX 7900 XTX and an RX 9070 XT (zzc0721/torch-performance-test-data, issues 68 and 173), and fp16 on a Ryzen AI Max
# (issue 5807 of ROCm/legacy-rocm-build)
VENDOR = {"gfx942": 548, "gfx1100": 92, "gfx1151": 32, "gfx1201": 133}
# A real time / its estimate, the least and the most. Products: those of 2048 x 2048 reach two thirds of the rate
# of 4096 x 4096 (the same measurements). Attention: docs/experiments/amd.md. Memory: an MI300X copies at 4.2 of its 5.3
# TB/s (issue 5070 of ROCm/legacy-rocm-build).
PRODUCT_ERROR, ATTENTION_ERROR, MEMORY_ERROR = (1, 1.5), (1, 2.2), (1.1, 1.5)
GAP = (1, 6)  # µs between two launches of a recorded step: an assumption

MODELS = {
    "default": (ModelConfig(vocab_size=5000), 32),
    "gpt2-124M": (
        ModelConfig(vocab_size=50257, max_seq_len=1024, num_layers=12, embed_dim=768, num_heads=12, ff_hidden_dim=3072),
        32,
    ),
}


class Step(NamedTuple):
    """The time of a training step, ms: an estimate for each kind of kernel, and the least and most of a real step."""

    tokens: int
    products: float
    attention: float
    rest: float
    least: float
    most: float


def step(model: str, target: str) -> Step:
    """The step of MODELS[model] on CHIPS[target]."""
    config, batch = MODELS[model]
    # The vendor's library computes a gradient at once.
    launches = [launch for launch in training_step(target, config, batch) if not launch.adds_parts]
    count = Counter(launch.key for launch in launches)
    products = sum(launch.flops for launch in launches if launch.name == "matmul") / VENDOR[target] / 1e9
    attention = rest = 0.0
    for launch in {launch.key: launch for launch in launches if launch.name != "matmul"}.values():
        time = count[launch.key] * estimate(launch, target).microseconds / 1e3
        if launch.name in PRODUCTS:
            attention += time
        else:
            rest += time
    least, most = (
        products * PRODUCT_ERROR[end] + attention * ATTENTION_ERROR[end] + rest * MEMORY_ERROR[end]
        + len(launches) * GAP[end] / 1e3
        for end in (0, 1)
    )  # fmt: skip
    return Step(batch * config.max_seq_len, products, attention, rest, least, most)


def table() -> list[tuple[str, ...]]:
    """A row for each model and each card whose vendor's products have been measured."""
    rows = [("model", "card", "products, ms", "attention", "rest", "step, ms", "thousand tokens/s")]
    for model in MODELS:
        for target in VENDOR:
            s = step(model, target)
            speeds = [s.tokens / ms for ms in (s.most, s.least)]
            times = (f"{ms:.1f}" for ms in (s.products, s.attention, s.rest))
            span = f"{s.least:.1f} to {s.most:.1f}", f"{speeds[0]:.0f} to {speeds[1]:.0f}"
            rows.append((model, CHIPS[target].card, *times, *span))
            print(" ".join(rows[-1]), file=sys.stderr)
    return rows
