"""Embedding, layer norm and dropout on every device, by kernels and by numba's loops, against the reference."""

import numpy as np
import pytest

from gpt.doctor import layers
from tests.support.devices import GPUS
from tests.support.grids import pairs

PRECISIONS, RATES = ["fp32", "bf16"], [0, 0.3]

# ---- embedding -------------------------------------------------------------------------------------------------------


TEXTS = [(1, 1, 1, 0), (2, 7, 24, 3), (3, 5, 30, 0), (2, 33, 136, 0)]  # batch, seq, width, start


@pytest.mark.parametrize(("shape", "rate", "ops"), pairs(TEXTS, RATES, PRECISIONS), indirect=["ops"])
def test_embedding(trial, shape, rate):
    layers.embedding(trial, *shape, rate)


def test_an_id_outside_of_the_vocabulary_makes_its_row_nan(ops, arrays, rng):
    ids, out = np.array([[1, 4, -1]], np.int32), arrays.of(np.zeros((3, 8)))
    inputs = arrays.of(ids), arrays.of(np.ones((4, 8))), arrays.of(np.ones((3, 8)))
    if ops.is_cpu:
        with pytest.raises(IndexError):
            ops.embedding(*inputs, out)
        return
    ops.embedding(*inputs, out)
    assert np.isnan(ops.to_host(out)).all(axis=1).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("shape", "rate", "ops"),
    pairs([(1, 1, 1), (2, 7, 24), (3, 5, 30), (4, 33, 136)], RATES, PRECISIONS),
    indirect=["ops"],
)
def test_embedding_backward_adds(trial, shape, rate):
    layers.embedding_backward(trial, *shape, rate)


# ---- layer norm ------------------------------------------------------------------------------------------------------


SPREADS = [(0, 1), (1e4, 1), (0, 1e-3), (-3, 1e4)]  # mean and standard deviation of the elements of a row
ROWS = [(1, 1), (5, 7), (9, 24), (3, 64), (67, 136), (4, 768), (3, 1030), (2, 1600)]


@pytest.mark.parametrize(("size", "spread", "ops"), pairs(ROWS, SPREADS, PRECISIONS), indirect=["ops"])
def test_layernorm(trial, size, spread):
    layers.layernorm(trial, *size, *spread)


@pytest.mark.parametrize(("size", "rate", "ops"), pairs(ROWS, RATES, PRECISIONS), indirect=["ops"])
def test_add_layernorm(trial, size, rate):
    layers.add_layernorm(trial, *size, rate)


@pytest.mark.parametrize(
    ("size", "branch", "ops"),
    pairs([*ROWS, (300, 64), (70, 800)], [None, *RATES], PRECISIONS),  # no branch, or one with this dropout rate
    indirect=["ops"],
)
def test_layernorm_backward(trial, size, branch):
    if branch is None:
        layers.layernorm_backward(trial, *size)
    else:
        layers.add_layernorm_backward(trial, *size, branch)


@pytest.mark.parametrize("device", GPUS, indirect=True)
def test_layernorm_backward_on_a_gpu_with_many_multiprocessors(trial, monkeypatch):
    """It has two blocks for each of them, and each block leaves a partial sum of a few rows."""
    monkeypatch.setattr(trial.ops.device, "multiprocessors", 304)
    assert trial.ops.partial_sums(10**6) == 608
    layers.layernorm_backward(trial, 8 * 290, 8)
    layers.add_layernorm_backward(trial, 8 * 290, 8, 0)


@pytest.mark.parametrize(("rows", "d"), [(1, 1), (5, 7), (67, 136)])
def test_dropout_drops_the_same_elements_everywhere(trial, rows, d):
    layers.dropout(trial, rows, d)
