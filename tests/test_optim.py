"""The schedule, and AdamW on a model's flat buffers."""

import math

import numpy as np
import pytest

from gpt.config import ModelConfig, TrainConfig
from gpt.model import GPT
from gpt.ops.cpu import CpuOps
from gpt.optim import AdamW, learning_rate


def test_the_rate_rises_linearly_then_falls_along_half_a_cosine():
    config = TrainConfig(total_steps=110, warmup_steps=10, learning_rate=1.0, min_lr=0.2)
    assert [learning_rate(step, config) for step in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(60, config) == pytest.approx(0.6)  # half-way: the middle of 1.0 and 0.2
    assert learning_rate(85, config) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.75)))
    assert learning_rate(110, config) == pytest.approx(0.2)


def test_a_constant_rate_stays_after_its_warmup():
    config = TrainConfig(total_steps=100, warmup_steps=4, learning_rate=1.0, schedule="constant")
    assert [learning_rate(step, config) for step in (2, 4, 5, 100)] == pytest.approx([0.5, 1.0, 1.0, 1.0])


def test_without_warmup_the_first_step_has_nearly_the_full_rate():
    config = TrainConfig(total_steps=100, warmup_steps=0, learning_rate=1.0)
    assert 0.99 < learning_rate(1, config) < 1.0


@pytest.fixture
def model():
    config = ModelConfig(vocab_size=13, max_seq_len=5, embed_dim=6, num_heads=2, ff_hidden_dim=7, num_layers=1)
    model = GPT(config, CpuOps(threads=1), training=True)
    model.initialize(seed=0)
    return model


def lr(rate):
    """A learning rate where the optimizer reads it."""
    return np.array([rate], np.float32)


def set_gradients(model, rng, size=1.0):
    for view in model.gradients.named.values():
        view[...] = size * rng.standard_normal(view.shape)


def test_a_step_that_is_not_finite_changes_nothing_but_its_counters(model):
    optimizer, rng = AdamW(model, TrainConfig()), np.random.default_rng(0)
    set_gradients(model, rng)
    optimizer.step(lr(1e-3))
    before = [array.copy() for array in (model.weights.flat, optimizer.exp_avg.flat, optimizer.exp_avg_sq.flat)]
    for poison in (np.nan, np.inf):
        set_gradients(model, rng)
        model.gradients.named["transformer.h.0.mlp.c_fc.bias"][3] = poison
        optimizer.step(lr(1e-3))
    after = [model.weights.flat, optimizer.exp_avg.flat, optimizer.exp_avg_sq.flat]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert optimizer.state() == {"adam_step": 1, "skipped": 2, "skipped_in_a_row": 2}
    set_gradients(model, rng)
    optimizer.step(lr(1e-3))
    assert optimizer.state() == {"adam_step": 2, "skipped": 2, "skipped_in_a_row": 0}


def test_a_loss_that_is_not_finite_skips_the_step_too(model):
    optimizer = AdamW(model, TrainConfig())
    model.metrics[0] = np.inf
    optimizer.step(lr(1e-3))
    assert optimizer.state() == {"adam_step": 0, "skipped": 1, "skipped_in_a_row": 1}


def test_only_two_dimensional_tensors_decay(model):
    before = {name: view.copy() for name, view in model.weights.named.items()}
    AdamW(model, TrainConfig(weight_decay=0.5)).step(lr(0.1))  # no gradient: decay is all that moves
    for name, view in model.weights.named.items():
        assert np.allclose(view, before[name] * (0.95 if view.ndim == 2 else 1.0), rtol=1e-6), name


@pytest.mark.peers
@pytest.mark.parametrize(("weight_decay", "grad_clip"), [(0.1, 1.0), (0.0, 0.0), (0.1, 0.0), (0.0, 0.3)])
def test_steps_equal_pytorchs(model, weight_decay, grad_clip):
    torch = pytest.importorskip("torch")
    ours = model.weights.named
    theirs = {name: torch.nn.Parameter(torch.tensor(view)) for name, view in ours.items()}
    groups = [
        {"params": [p for p in theirs.values() if p.dim() == 2], "weight_decay": weight_decay},
        {"params": [p for p in theirs.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    optimizer, rng = AdamW(model, TrainConfig(weight_decay=weight_decay, grad_clip=grad_clip)), np.random.default_rng(1)
    steps, rate = 20, 1e-2
    for _ in range(steps):
        set_gradients(model, rng, size=rng.choice([1e-3, 1.0]))
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(model.gradients.named[name])
        if grad_clip:
            norm = torch.nn.utils.clip_grad_norm_(theirs.values(), grad_clip)
        for group in peer.param_groups:
            group["lr"] = rate
        peer.step()
        optimizer.step(lr(rate))
        if grad_clip:
            assert optimizer.norm[0] == pytest.approx(norm.item(), rel=1e-5)
    # Each step moves a weight by about the rate, with a handful of float32 roundings (2**-24 each) of that, and rounds
    # the weight (below 2) once: 20 steps differ by less than 20 x (10 x rate + 2) x 2**-24.
    bound = steps * (10 * rate + 2) * 2**-24
    for name, parameter in theirs.items():
        assert np.abs(parameter.detach().numpy() - ours[name]).max() < bound, name
