"""A whole model, forward, backward and stepping, on every device against the CPU."""

from dataclasses import replace

import numpy as np
import pytest

from gpt.batches import token_order
from gpt.config import ModelConfig, TrainConfig
from gpt.initialization import initial_weights
from gpt.model import KVCache, TrainableGPT
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.launch import Kernels
from gpt.optim import Optimizer
from tests.support.devices import GPUS

CONFIGS = {
    "tied": ModelConfig(vocab_size=37, max_seq_len=19, embed_dim=32, num_heads=2, ff_hidden_dim=48, num_layers=2),
    "odd": ModelConfig(
        vocab_size=41, max_seq_len=9, embed_dim=30, num_heads=3, ff_hidden_dim=35, num_layers=1, activation="relu",
        tie_embeddings=False, dropout=0.1,
    ),
}  # fmt: skip
BATCH = 3
# A rounding to bf16 is off by 2^-8 at most. A gradient passes about a dozen roundings per layer. Their errors are
# independent, so their squares add up: sqrt(2 · 12) · 2^-8 = 2 % of its norm. The bound is twice that, because softmax
# and layer norm amplify errors.
BF16_GRADIENT = 0.04
# The kink of ReLU amplifies without bound: if rounding moves a pre-activation across 0, a whole term of a gradient
# appears or vanishes. With the weights of this seed none of the ReLU model's is so near to 0; with most seeds one is.
SEED = 2


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def batch(config, number=0):
    drawn = np.random.default_rng(number).integers(0, config.vocab_size, (BATCH, config.max_seq_len + 1))
    ids, labels = (np.ascontiguousarray(part, np.int32) for part in (drawn[:, :-1], drawn[:, 1:]))
    return ids, labels, token_order(ids)


def build(config, ops, recompute=False):
    model = TrainableGPT(config, ops, BATCH, recompute)
    model.initialize(SEED)
    ops.copy(np.array([8, 1], np.uint32), out=model.dropout_key)
    return model


def optimizer_of(model, name="adamw"):
    optimizer = Optimizer(model, TrainConfig(optimizer=name))
    optimizer.initialize(initial_weights(model.config, SEED))
    return optimizer


def step(model, optimizer, number, lr=1e-2):
    ops = model.ops
    ops.clear(model.gradients.flat)
    ops.clear(model.metrics)
    arrays = [ops.from_host(x) for x in batch(model.config, number)]
    model.loss_and_gradients(*arrays, ops.from_host(np.full(1, 1 / arrays[0].size, np.float32)))
    if optimizer:
        optimizer.step(ops.from_host(np.full(1, lr, np.float32)))
    return ops.to_host(model.metrics)[0] / arrays[0].size


def losses(config, ops, steps, optimizer, kept):
    """The loss of each step, and all weights after `kept` steps."""
    model = build(config, ops)
    optimizer = optimizer_of(model, optimizer)
    first = [step(model, optimizer, number) for number in range(kept)]
    weights = ops.to_host(model.weights.flat).copy()
    return [*first, *(step(model, optimizer, number) for number in range(kept, steps))], weights


def test_every_gradient_is_the_cpus(config, ops):
    ours, theirs = build(config, ops), build(config, CpuOps(threads=1))
    loss, expected = step(ours, None, 0), step(theirs, None, 0)
    bound = BF16_GRADIENT if ops.low_precision else 1e-4
    assert loss == pytest.approx(expected, rel=bound)
    for name, view in theirs.gradients.named.items():
        mine = ops.to_host(ours.gradients.named[name])
        # The gradient of the keys' bias is 0 apart from rounding, because softmax is invariant to that bias.
        size = np.linalg.norm(view) if "c_attn.bias" not in name else np.linalg.norm(theirs.gradients.flat) / 10
        assert np.linalg.norm(mine - view) <= bound * size, name


@pytest.mark.parametrize("device", GPUS, indirect=True)
def test_every_gradient_is_the_cpus_if_its_matrices_are_computed_in_parts(config, ops, monkeypatch):
    monkeypatch.setattr(Kernels, "gradient_parts", lambda *weight_and_depth: BATCH)
    test_every_gradient_is_the_cpus(config, ops)


def test_blocks_that_are_computed_again_give_the_same_bits(config, ops):
    config = replace(config, num_layers=3, dropout=0.1)
    kept, again = build(config, ops), build(config, ops, recompute=True)
    assert step(again, None, 0) == step(kept, None, 0)
    assert ops.to_host(kept.gradients.flat).any()
    np.testing.assert_array_equal(ops.to_host(again.gradients.flat), ops.to_host(kept.gradients.flat))


MOVED = [("tied", "adamw"), ("odd", "adamw"), ("tied", "muon")]  # pairs of a model and its optimizer


@pytest.mark.parametrize(("name", "optimizer"), MOVED)
def test_training_follows_the_cpu_and_gives_the_same_bits_again(name, ops, optimizer):
    """The device and the CPU round the same steps differently. In float32 their losses are a thousandth apart at most
    after 4 steps, because Adam divides small gradients by their own size and Muon raises small singular values; in bf16
    as far as the gradients are. A second run on the device takes fewer steps, because each reads all results of the
    step before.
    """
    config = CONFIGS[name]
    steps, again = (4, 3) if optimizer == "adamw" else (2, 2)
    ours, weights = losses(config, ops, steps, optimizer, kept=again)
    theirs, _ = losses(config, CpuOps(threads=1), steps, optimizer, kept=again)
    np.testing.assert_allclose(ours, theirs, rtol=BF16_GRADIENT if ops.low_precision else 1e-3)
    repeated, repeated_weights = losses(config, ops, again, optimizer, kept=again)
    assert repeated == ours[:again]
    assert np.array_equal(repeated_weights, weights)


def test_the_padding_of_the_vocabulary_stays_zero(config, ops):
    model = build(config, ops)
    optimizer = optimizer_of(model)
    step(model, optimizer, 0)
    for parameters in (model.weights, model.gradients):
        assert not ops.to_host(parameters.head)[config.vocab_size :].any()


@pytest.mark.parametrize(("name", "optimizer"), MOVED)
def test_products_read_the_rounded_weights(name, ops, optimizer):
    model = build(CONFIGS[name], ops)
    optimizer = optimizer_of(model, optimizer)
    step(model, optimizer, 0)
    exact = optimizer.weights_on_host()
    for name, view in model.weights.named.items():
        np.testing.assert_allclose(ops.to_host(view), exact[name], rtol=2**-8 if ops.low_precision else 0)


def test_logits_do_not_depend_on_how_many_tokens_come_at_a_time(config, ops):
    """In bf16 the two ways round differently, by a few roundings of numbers of the logits' size."""
    model = build(config, ops)
    ids = batch(config)[0][:1]
    whole = model.logits(ops.from_host(ids))[0]
    cache, logits = KVCache.allocate(config, ops, ops.zeros(1, "int32"), ops.zeros(1, "int32")), []
    model.read(ops.from_host(ids[:, :4].copy()), cache)
    for position in range(4, ids.shape[1]):
        ops.copy(np.array([position], np.int32), out=cache.start)
        found = model.decode(ops.from_host(ids[:, position].copy()), cache)
        logits.append(ops.to_host(found)[0, : config.vocab_size].copy())
    size = np.abs(whole).max()
    np.testing.assert_allclose(logits, whole[4:], rtol=0, atol=size * (12 * 2**-8 if ops.low_precision else 1e-5))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(ops, optimizer):
    model = build(CONFIGS["tied"], ops)
    optimizer = optimizer_of(model, optimizer)
    step(model, optimizer, 0)
    before = ops.to_host(model.weights.flat).copy()
    tensors = [tensor.copy() for tensor in optimizer.tensors_on_host().values()]
    ops.copy(np.full(model.gradients.flat.shape, np.nan, np.float32), out=model.gradients.flat)
    optimizer.step(ops.from_host(np.ones(1, np.float32)))
    assert np.array_equal(ops.to_host(model.weights.flat), before)
    assert all(np.array_equal(a, b) for a, b in zip(optimizer.tensors_on_host().values(), tensors, strict=True))
    assert optimizer.state() == {"adam_step": 1, "skipped": 1, "skipped_in_a_row": 1}
