"""The optimizers on every device, by kernels and by numba's loops, against the reference."""

import math

import numpy as np
import pytest

from gpt.doctor import updates
from gpt.doctor.bounds import TF32, u
from gpt.doctor.updates import RULE, planned
from gpt.ops.gpu import muon as gpu_muon
from gpt.ops.gpu import operations
from gpt.ops.gpu.blas import Sum
from gpt.ops.interface import AdamBuffers, Stack
from gpt.optim import NEWTON_SCHULZ
from tests.ops.kernels.bounds import near
from tests.support.devices import GPUS
from tests.support.grids import pairs


@pytest.mark.parametrize("n", [1, 7, 1024, 70_000])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_the_global_norm_neither_overflows_nor_underflows(trial, n, magnitude):
    updates.global_norm(trial, n, magnitude)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 4, 6])
def test_a_gradient_that_is_not_finite_makes_the_norm_not_finite(ops, arrays, poison, place):
    x = np.zeros(7, np.float32)
    x[place] = poison
    out = arrays.of(np.zeros(1), "float64")
    ops.global_norm(arrays.of(x, "float32"), out)
    assert not np.isfinite(ops.to_host(out)).any()


def test_the_norm_of_the_norms_of_shares_is_the_global_norm(trial):
    updates.norm_of_norms(trial, 14)


@pytest.mark.parametrize("ops", ["bf16"], indirect=True)  # only there do copies round
@pytest.mark.parametrize("n", [800, 804, 803])
def test_large_copies_are_rounded_on_the_device_as_small_ones_on_the_host(trial, n, monkeypatch):
    """In parts of 256 elements, the last one smaller; or on the host, if a part would not be whole vectors."""
    x = (trial.rng.standard_normal(n) * 10.0 ** trial.rng.integers(-20, 20, n)).astype(np.float32)
    x[n // 2 :: 7] = np.inf, -np.inf, *[np.nan] * (len(x[n // 2 :: 7]) - 2)
    small, large = trial.poisoned(n), trial.poisoned(n)
    trial.ops.copy(x, out=small)
    monkeypatch.setattr(operations, "LARGE_COPY", 256)
    trial.ops.copy(x, out=large)
    assert np.array_equal(trial.ops.to_host(large), trial.ops.to_host(small), equal_nan=True)


@pytest.mark.parametrize("device", GPUS, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", ""])
def test_a_large_copy_takes_little_of_the_devices_memory_besides(ops, dtype, monkeypatch):
    x, seen = np.arange(800, dtype=np.float32).reshape(4, 200) % 256, []  # bf16 has these numbers
    out, asarray = ops.empty(x.shape, dtype), ops._xp.asarray
    with monkeypatch.context() as patched:
        patched.setattr(operations, "LARGE_COPY", 256)
        patched.setattr(ops._xp, "asarray", lambda part: seen.append(part.nbytes) or asarray(part))
        ops.copy(x, out=out)
        assert max(seen) == ops.loading_bytes(x.nbytes) == 1024
    assert np.array_equal(ops.to_host(out), x)


@pytest.mark.parametrize("ops", ["bf16"], indirect=True)  # only ranks that compute in bf16 exchange gradients in it
def test_gradients_are_converted_to_bf16_and_back(trial):
    updates.convert(trial, 128 * 9)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("loss", [1.0, np.nan])
def test_the_plan_of_a_step(trial, clip, loss):
    updates.plan_update(trial, clip, loss)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("first", [False, True])
def test_adamw(trial, clip, first):
    updates.adamw(trial, 1280, 512, clip, first)


@pytest.mark.parametrize("ops", ["bf16"], indirect=True)
def test_the_copy_of_the_weights_is_rounded_to_the_nearest_bf16_and_ties_to_even(ops, arrays):
    """Weights of every kind: denormal, infinite, NaN, and finite ones that become infinite when they are rounded.

    A step with a learning rate of 0 leaves the weights as they are, and only makes the copy.
    """
    high = (np.arange(0, 2**16, 32, dtype=np.uint32)[:, None] + np.array([0, 1, 31], np.uint32)).ravel()
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    weights = (high[:, None] << 16 | low).ravel().view(np.float32)
    zeros, copy = np.zeros(weights.size), arrays.poisoned(weights.size)
    mine = arrays.of(weights, "float32"), *(arrays.of(zeros, "float32") for _ in range(3))
    plan = planned(arrays, 1.0, [1.0, 1.0], np.zeros(3, np.int64), 0.0, clip=0.0)
    ops.adamw(AdamBuffers(*mine, copy, decayed=0), plan, RULE)
    stored = ops.to_host(mine[0])  # AMD GPUs take denormals for 0
    np.testing.assert_array_equal(ops.to_host(copy), ops.to_host(arrays.of(stored)))
    np.testing.assert_array_equal(np.isnan(stored), np.isnan(weights))


@pytest.mark.parametrize(("norm", "loss"), [(np.nan, 1), (np.inf, 1), (1, np.nan), (1, -np.inf)])
def test_a_step_that_is_not_finite_is_skipped_by_every_optimizer(ops, arrays, rng, norm, loss):
    host = [rng.standard_normal(256).astype(np.float32) for _ in range(4)]
    mine, counters = [arrays.of(x, "float32") for x in host], np.array([5, 2, 1])
    plan = planned(arrays, norm, [1.0, loss], counters, 1.0, clip=1.0)
    ops.adamw(AdamBuffers(*mine, None, decayed=256), plan, RULE)
    stack = Stack(*(x.reshape(2, 8, 16) for x in mine[:3]), copy=None)
    ops.muon([stack], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    assert all(np.array_equal(ops.to_host(a), b) for a, b in zip(mine, host, strict=True))
    assert counters.tolist() == [5, 3, 2]


# Singular values of about 1 make elements of at most 1, whose roundings are 2^-24 in fp32 or 2^-9 in bf16. The steps
# enlarge such errors some hundreds of times in fp32, which keeps small singular values. In bf16, which loses small
# singular values anyway, they enlarge them a few times.
MUON_FP32, MUON_BF16 = 400 * u, 0.1
STACKS = [(1, 1, 1), (2, 16, 16), (3, 24, 72), (2, 96, 33), (2, 130, 64), (4, 7, 5)]  # matrices, rows, columns


@pytest.mark.parametrize(("shape", "scale", "ops"), pairs(STACKS, [1.0, 0.25], ["fp32", "bf16"]), indirect=["ops"])
def test_muon(trial, shape, scale):
    updates.muon(trial, *shape, scale)


@pytest.mark.parametrize("device", GPUS, indirect=True)  # a CPU moves one matrix at a time
@pytest.mark.parametrize("tall", [False, True])
def test_matrices_that_do_not_fit_at_once_are_moved_in_parts(trial, ops, arrays, tall, monkeypatch):
    shape = (5, 32, 16) if tall else (5, 16, 32)
    _, stack = updates.stack(trial, shape)
    others = Stack(*(None if a is None else a.copy() for a in stack))
    plan = arrays.of(np.array([0, 1, 0.1, 0.99, 1, 1]), "float64")
    ops.muon([stack], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    monkeypatch.setattr(gpu_muon, "AT_ONCE", 2 * 16 * 32)
    ops.muon([others], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    weights = ops.to_host(stack.weights)  # a library may choose another algorithm for another number of products
    tolerance = MUON_FP32 if ops.precision == "fp32" else MUON_BF16
    np.testing.assert_allclose(ops.to_host(others.weights), weights, rtol=0, atol=tolerance * 0.1 * 0.2 * math.sqrt(32))
    assert np.array_equal(ops.to_host(stack.momentum), ops.to_host(others.momentum))


@pytest.mark.parametrize("device", GPUS, indirect=True)
@pytest.mark.parametrize(("shape", "n"), [((3, 5, 7), 9), ((2, 64, 32), 70), ((1, 8, 8), 8)])
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False)])
def test_products_of_stacks(ops, arrays, rng, U, shape, n, transposed):
    count, m, k = shape

    def stack(rows, columns, turned=False):
        value = arrays.rounded(rng.standard_normal((count, columns, rows) if turned else (count, rows, columns)))
        mine = arrays.of(value)
        return (mine.swapaxes(1, 2), value.swapaxes(1, 2)) if turned else (mine, value)

    (a, a_), (b, b_), (addend, addend_) = stack(m, k, transposed[0]), stack(k, n, transposed[1]), stack(m, n)
    out, plain = arrays.poisoned(count, m, n), arrays.poisoned(count, m, n)
    ops._products.product(a, b, out, Sum(-0.5, 3.0, addend))
    ops._products.product(a, b, plain)
    size = np.abs(a_) @ np.abs(b_)
    bound = (k + 4) * u * (size + 3 * np.abs(addend_))
    tf32 = (TF32 if ops.precision == "tf32" else 0) * size
    expected = 3 * addend_ - 0.5 * (a_ @ b_)
    near(ops, out, expected, bound + tf32 + U * np.abs(expected))
    near(ops, plain, a_ @ b_, bound + tf32 + U * np.abs(a_ @ b_))
