"""The self-test of `hipgpt doctor`: every operation in every precision of a device, then a few training steps."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpt.batches import Batches
from gpt.config import ModelConfig, TrainConfig
from gpt.doctor import layers, updates
from gpt.doctor.trial import REFERENCE, Trial
from gpt.initialization import initial_weights
from gpt.ops.interface import Operations
from gpt.trainer import TrainStep

ROWS = ((5, 7), (67, 136), (4, 768), (3, 1030))  # rows, width: whole vectors and others, one warp a row and several
SIZES = ((3, 5, 7), (67, 129, 71), (130, 64, 200), (1, 24, 40), (1, 24, 7))  # rows, in, out
LAYERS = ((False, None), (False, "gelu"), (False, "relu"), (True, None))  # transposed weight; activation
ADDED = [(True, None, True), (True, "gelu", True)]  # and whether the sum is added to what is there: beside an adapter
GRADIENTS = ((False, False), (False, True), (True, False))  # transposed weight; whether the gradient begins anew
# sequences, in, out: one row of each sequence
DECODED = [(3, 5, 7), (1, 24, 40), (1, 24, 7), (3, 24, 7), (1, 776, 264), (11, 776, 264), (1, 3080, 40)]
HEADS = ((2, 3, 5, 32), (1, 2, 64, 64), (1, 1, 67, 80), (1, 1, 33, 96), (1, 1, 130, 128))  # batch, heads, seq, head_dim
RATES = (0.0, 0.3)  # of dropout

# Operation → the shapes of its check, in the order of the check's parameters.
CASES: dict[str, list[tuple[Any, ...]]] = {
    "copy": [(1000,)],
    "clear": [(1000,)],
    "embedding": [(*shape, rate) for shape in ((2, 7, 24, 3), (3, 5, 30, 0), (2, 33, 136, 0)) for rate in RATES],
    "embedding_backward": [(*shape, rate) for shape in ((2, 7, 24), (3, 5, 30), (4, 33, 136)) for rate in RATES],
    "layernorm": [*ROWS, (67, 136, 1e4, 1)],
    "add_layernorm": [(*rows, rate) for rows in ROWS for rate in RATES],
    "layernorm_backward": [*ROWS, (300, 64)],
    "add_layernorm_backward": [(*rows, rate) for rows in (*ROWS, (300, 64)) for rate in RATES],
    "dropout": [(5, 7), (67, 136)],
    "linear": [*((*size, *layer) for size in SIZES for layer in LAYERS), *((67, 16, 136, *added) for added in ADDED)],
    "norm_linear": [(*size, *layer) for size in DECODED for layer in LAYERS],
    "linear_add": [*DECODED, (9, 3080, 40)],
    "linear_backward": [
        *((*size, *layer) for size in SIZES for layer in LAYERS), *((67, 136, 16, *added) for added in ADDED)
    ],
    "weight_gradient": [
        (*size, transposed, fresh) for size in (*SIZES, (512, 40, 72)) for transposed, fresh in GRADIENTS
    ],  # the last ones in parts, by hipgpt's own products
    "add_partials": [(7, 30), (9, 128), (256, 640)],
    "attention": [(*heads, rate) for heads in HEADS for rate in RATES],
    "attention_backward": [(*heads, rate) for heads in HEADS for rate in RATES],
    "attention_cached": [(1, 0, 2, 32), (1, 300, 2, 64), (2, 40, 1, 80), (1, 33, 1, 96), (3, 130, 1, 128)],
    "fill_cache": [(5, 2, 32), (67, 3, 64), (9, 1, 5)],
    "softmax_cross_entropy": [
        (*rows, 3.0, scale) for rows in ((3, 7), (4, 1000), (2, 8199), (2, 50_257)) for scale in (None, 0.25)
    ],
    "add_sums": [(1000,)],
    "sample": [
        (vocab, *rule) for vocab in (7, 2100)
        for rule in ((0, 0, 1), (1, 0, 1), (0.7, 5, 1), (1, 0, 0.8), (1, 300, 0.9))
    ],
    "global_norm": [(7,), (70_000,)],
    "convert": [(128 * 9,)],
    "norm_of_norms": [(14,)],
    "plan_update": [(0.0,), (0.5,), (0.5, np.nan)],
    "adamw": [(1280, 512, 0.0), (1280, 512, 0.5), (1280, 512, 0.5, True)],
    "muon": [(2, 16, 16), (3, 24, 72), (2, 96, 33)],
}  # fmt: skip
# Larger products, for the vendor's library: hipgpt's own kernel takes the same path for every size.
LARGE: dict[str, list[tuple[Any, ...]]] = {
    "linear": [(512, 256, 768, *layer) for layer in LAYERS],
    "linear_backward": [(512, 256, 768, *layer) for layer in LAYERS],
    "weight_gradient": [(512, 256, 768, *gradient) for gradient in GRADIENTS],
    "muon": [(4, 128, 256)],
}
# Products that are so large that the library applies GELU too, in bf16
FUSED: dict[str, list[tuple[Any, ...]]] = {
    "linear": [(4104, 64, 4096, False, "gelu")],
    "linear_backward": [(4104, 4096, 64, False, "gelu")],
}

CHECKS: dict[str, Callable[..., None]] = {name: getattr(layers, name, None) or getattr(updates, name) for name in CASES}
BF16_ALONE = "convert"  # gradients travel in bf16 only among ranks that compute in bf16

TRAINING = "training"  # the name of the last check
# The checks that ask the vendor's library for products
PRODUCTS = {"linear", "norm_linear", "linear_add", "linear_backward", "weight_gradient", "muon", TRAINING}
MODEL = ModelConfig(
    vocab_size=100, max_seq_len=33, embed_dim=64, num_heads=2, ff_hidden_dim=136, num_layers=2, dropout=0.1
)
STEPS = 3
SEQUENCES = 24  # of a step: a mean over more tokens has a smaller error, and with 3 Muon's came up to the bound


class Failure(NamedTuple):
    """A check that found something wrong."""

    operation: str
    precision: str
    shape: str
    finding: str

    def __str__(self) -> str:
        return f"{self.operation} in {self.precision} of {self.shape}: {self.finding}"


class Check(NamedTuple):
    """A check of one operations object. `run` returns what is wrong, nothing if all is right."""

    operation: str
    shape: str
    run: Callable[[], list[str]]

    def finding(self) -> str:
        """Run it. An exception is a finding too, because any library may raise any."""
        try:
            return "; ".join(self.run())
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def checks(ops: Operations) -> Iterator[Check]:
    """All checks for `ops`, operation by operation, training last."""
    large, fused = (LARGE, FUSED if ops.low_precision else {}) if ops.has_vendor_blas else ({}, {})
    for name in CASES:
        if name != BF16_ALONE or ops.low_precision:
            for case in (*CASES[name], *large.get(name, ()), *fused.get(name, ())):
                yield Check(name, _described(case), partial(_trial, ops, name, case))
    for optimizer in ("adamw", "muon"):
        yield Check(TRAINING, f"{STEPS} steps with {optimizer}", partial(_training, ops, optimizer))


def _trial(ops: Operations, name: str, case: tuple[Any, ...]) -> list[str]:
    trial = Trial(ops)
    with np.errstate(all="ignore"):
        CHECKS[name](trial, *case)
    trial.finish()
    return trial.findings


def _described(case: tuple[Any, ...]) -> str:
    """The shape of a case as in "67 x 129 x 71, gelu"."""
    sizes = " x ".join(f"{each}" for each in case if type(each) is int)
    rest = [f"{each}" for each in case if type(each) is not int and each is not None and each is not False]
    return ", ".join([sizes, *rest] if sizes else rest)


# ---- training --------------------------------------------------------------------------------------------------------


def _training(ops: Operations, optimizer: str) -> list[str]:
    """Train a tiny model, and compare its losses and weights with those of the reference.

    A GPU replays the third step from a recording. Losses are means over 792 tokens of log 100 and logits of size 0.16.
    In bf16 a logit has been rounded some ten times, each time by 2^-9 / sqrt(3) in root mean square: an error of 6e-4,
    of 2e-5 in a mean of 792, and of 5e-6 relative to the loss of 4.6. Later steps have weights of slightly other
    directions, which doubles it. The bound, U / 32 = 1.2e-4, is twelve times that. Muon uses more of it, because it
    moves a matrix by the same step in every direction, also in those in which rounding is most of the gradient: over 16
    seeds its losses were off by 1.9e-5 in root mean square, and by 5.7e-5 at most. A weight may move in either
    direction if its gradient is nothing but noise, as that of the keys' bias is, but no further than its steps.
    """
    ours, ours_weights = _trained(ops, optimizer)
    theirs, their_weights = _trained(REFERENCE, optimizer)
    tolerance = Trial(ops).product_U / 32 + 1e-6
    found = [
        f"the loss of step {number} is {mine:.6g}, not {exact:.6g}"
        for number, (mine, exact) in enumerate(zip(ours, theirs, strict=True), start=1)
        if not abs(mine - exact) <= tolerance * abs(exact)
    ]
    moved = STEPS * TrainConfig(optimizer=optimizer).peak_lr * 2
    for name, weights in their_weights.items():
        off = np.abs(ours_weights[name] - weights).max()
        if not off <= moved:
            found.append(f"{name} is off by {off:.3g}")
    return found


def _trained(ops: Operations, optimizer: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses of STEPS steps, and the weights after them."""
    config = TrainConfig(batch_size=SEQUENCES, total_steps=STEPS, optimizer=optimizer, warmup_steps=0)
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, 3000, np.uint16)
    batches = Batches(tokens, config.batch_size, MODEL.max_seq_len, sampling="shuffled", seed=0, val_fraction=0)
    step = TrainStep(MODEL, config, batches, ops)
    step.optimizer.initialize(initial_weights(MODEL, seed=0))
    losses = []
    for number in range(1, STEPS + 1):
        step.run(number)
        losses.append(step.metrics().loss)
    return losses, step.optimizer.weights_on_host()
