"""Attention on every device, by kernels and by numba's loops, against the reference."""

import pytest

from gpt.doctor import layers
from tests.support.devices import GPU, NUMBA

HEADS = [
    (1, 1, 1, 16), (2, 3, 5, 32), (1, 2, 64, 64), (1, 1, 67, 80), (1, 1, 33, 96), (1, 1, 130, 128), (2, 1, 97, 15),
    (1, 2, 16, 8), (1, 1, 200, 24), (1, 1, 135, 80),
]  # batch, heads, seq, head_dim  # fmt: skip


@pytest.mark.parametrize("ops", ["fp32", "tf32", "bf16"], indirect=True)
@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("rate", [0, 0.3])
def test_attention(trial, shape, rate):
    layers.attention(trial, *shape, rate)


@pytest.mark.parametrize("magnitude", [1e-3, 30.0])
def test_attention_of_large_and_tiny_scores(trial, magnitude):
    layers.attention(trial, 1, 2, 37, 32, 0, magnitude)


@pytest.mark.parametrize("ops", ["fp32", "tf32", "bf16"], indirect=True)
@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("rate", [0, 0.3])
def test_attention_backward(trial, shape, rate):
    layers.attention_backward(trial, *shape, rate)


@pytest.mark.parametrize("device", [GPU, NUMBA], indirect=True)  # on emulated devices it takes minutes
@pytest.mark.parametrize("shape", [(1, 2, 1023, 64), (1, 1, 2048, 32), (1, 1, 2048, 128)])
@pytest.mark.parametrize("rate", [0, 0.3])
def test_attention_of_long_sequences(trial, shape, rate):
    layers.attention(trial, *shape, rate)
    layers.attention_backward(trial, *shape, rate)


@pytest.mark.parametrize(
    ("n", "start", "heads", "hd"),
    [
        (1, 0, 1, 16), (5, 0, 2, 32), (1, 300, 2, 64), (3, 40, 1, 15), (1, 130, 1, 128), (40, 3, 1, 24),
        (1, 600, 1, 127), (2, 1100, 1, 16), (1, 0, 3, 8),
    ],
)  # fmt: skip
def test_attention_of_new_positions_against_a_cache(trial, n, start, heads, hd):
    layers.attention_cached(trial, n, start, heads, hd)
