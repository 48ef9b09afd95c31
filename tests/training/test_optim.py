"""The schedules, and both optimizers on a model's flat buffers."""

import numpy as np
import pytest

from gpt.config import ModelConfig, TrainConfig
from gpt.model import TrainableGPT
from gpt.ops.cpu.operations import CpuOps
from gpt.optim import MOMENTUM, Optimizer, optimizer_shapes
from gpt.parameters import matrix_names


@pytest.fixture
def model():
    config = ModelConfig(vocab_size=13, max_seq_len=5, embed_dim=6, num_heads=2, ff_hidden_dim=7, num_layers=1)
    model = TrainableGPT(config, CpuOps(threads=1))
    model.initialize(seed=0)
    return model


def lr(rate):
    """A learning rate in the form that the optimizer takes."""
    return np.array([rate], np.float32)


def set_gradients(model, rng, size=1.0):
    for view in model.gradients.named.values():
        view[...] = size * rng.standard_normal(view.shape)


def test_a_step_that_is_not_finite_changes_nothing_but_its_counters(model):
    optimizer, rng = Optimizer(model, TrainConfig()), np.random.default_rng(0)
    set_gradients(model, rng)
    optimizer.step(lr(1e-3))
    kept = [model.weights.flat, *optimizer.tensors_on_host().values()]
    before = [array.copy() for array in kept]
    for poison in (np.nan, np.inf):
        set_gradients(model, rng)
        model.gradients.named["transformer.h.0.mlp.c_fc.bias"][3] = poison
        optimizer.step(lr(1e-3))
    assert all(np.array_equal(a, b) for a, b in zip(before, kept, strict=True))
    assert optimizer.state() == {"adam_step": 1, "skipped": 2, "skipped_in_a_row": 2}
    set_gradients(model, rng)
    optimizer.step(lr(1e-3))
    assert optimizer.state() == {"adam_step": 2, "skipped": 2, "skipped_in_a_row": 0}


def test_a_loss_that_is_not_finite_skips_the_step_too(model):
    optimizer = Optimizer(model, TrainConfig())
    model.metrics[0] = np.inf
    optimizer.step(lr(1e-3))
    assert optimizer.state() == {"adam_step": 0, "skipped": 1, "skipped_in_a_row": 1}


def test_only_two_dimensional_tensors_decay(model):
    before = {name: view.copy() for name, view in model.weights.named.items()}
    Optimizer(model, TrainConfig(weight_decay=0.5)).step(lr(0.1))  # without a gradient, only decay moves the weights
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
    optimizer = Optimizer(model, TrainConfig(weight_decay=weight_decay, grad_clip=grad_clip))
    rng = np.random.default_rng(1)
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
    # Each step moves a weight by about the rate, with a few float32 roundings (2**-24 each) of that, and rounds
    # the weight (below 2) once: 20 steps differ by less than 20 x (10 x rate + 2) x 2**-24.
    bound = steps * (10 * rate + 2) * 2**-24
    for name, parameter in theirs.items():
        assert np.abs(parameter.detach().numpy() - ours[name]).max() < bound, name


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest(model):
    """If only one matrix has a gradient, only that matrix and its momentum in Muon move."""
    optimizer = Optimizer(model, TrainConfig(optimizer="muon", weight_decay=0))
    before = {name: view.copy() for name, view in model.weights.named.items()}
    moved = "transformer.h.0.mlp.c_fc.weight", "transformer.wpe.weight"
    for name in moved:
        model.gradients.named[name][...] = 1
    optimizer.step(lr(1e-2))
    assert {name for name, view in model.weights.named.items() if not np.array_equal(view, before[name])} == set(moved)
    kept = {name for name, tensor in optimizer.tensors_on_host().items() if tensor.any()}
    assert kept == {f"momentum.{moved[0]}", f"exp_avg.{moved[1]}", f"exp_avg_sq.{moved[1]}"}
    assert {name: view.shape for name, view in optimizer.tensors_on_host().items()} == optimizer_shapes(
        model.config, "muon"
    )


def test_a_step_of_muon_has_adamws_size(model):
    """If all singular values are 1, a step's root mean square is 0.2 · rate for any shape of the matrix. Muon
    brings those of a random matrix to within 0.15 of 1."""
    optimizer = Optimizer(model, TrainConfig(optimizer="muon", weight_decay=0, grad_clip=0))
    rng = np.random.default_rng(0)
    before = {name: view.copy() for name, view in model.weights.named.items()}
    set_gradients(model, rng)
    optimizer.step(lr(1e-2))
    for name in matrix_names(model.config):
        size = np.sqrt(np.mean((model.weights.named[name] - before[name]) ** 2))
        assert size == pytest.approx(0.2e-2, rel=0.16), name


@pytest.mark.peers
@pytest.mark.parametrize("weight_decay", [0.1, 0.0])
def test_steps_of_muon_equal_pytorchs(weight_decay):
    """PyTorch orthogonalizes in bf16: five steps of three products each, whose roundings of 2^-9 add up in squares to
    sqrt(15) · 2^-9 = 0.8 % of a step, and the polynomials raise those of small singular values by a few. Steps differ
    in direction alone by that, which is why 20 of them are compared with 5 % of their sum."""
    torch = pytest.importorskip("torch")
    config = ModelConfig(vocab_size=13, max_seq_len=5, embed_dim=24, num_heads=2, ff_hidden_dim=56, num_layers=2)
    model = TrainableGPT(config, CpuOps(threads=1))
    model.initialize(seed=0)
    names = matrix_names(config)
    ours = {name: model.weights.named[name] for name in names}
    theirs = {name: torch.nn.Parameter(torch.tensor(view)) for name, view in ours.items()}
    start = {name: view.copy() for name, view in ours.items()}
    jordan = ((3.4445, -4.7750, 2.0315),) * 5
    peer = torch.optim.Muon(
        theirs.values(), lr=1e-2, weight_decay=weight_decay, momentum=MOMENTUM, ns_coefficients=jordan[0], ns_steps=5,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    optimizer = Optimizer(model, TrainConfig(optimizer="muon", weight_decay=weight_decay, grad_clip=0))
    optimizer.coefficients = jordan
    rng = np.random.default_rng(1)
    for _ in range(20):
        set_gradients(model, rng)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(model.gradients.named[name])
        peer.step()
        optimizer.step(lr(1e-2))
    for name, parameter in theirs.items():
        moved = np.linalg.norm(ours[name] - start[name])
        assert np.linalg.norm(parameter.detach().numpy() - ours[name]) < 0.05 * moved, name
