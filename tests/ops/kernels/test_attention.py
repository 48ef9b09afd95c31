"""Attention on every device, by kernels and by numba's loops, against the reference."""

import numpy as np
import pytest

from gpt.doctor import layers
from gpt.ops.gpu.launch import attention_block
from gpt.ops.gpu.targets import shared_bytes
from tests.support.devices import GPU, NUMBA
from tests.support.grids import pairs

PRECISIONS = ["fp32", "tf32", "bf16"]
HEADS = [
    (1, 1, 1, 16), (2, 3, 5, 32), (1, 2, 64, 64), (1, 1, 67, 80), (1, 1, 33, 96), (1, 1, 130, 128), (2, 1, 97, 15),
    (1, 2, 16, 8), (1, 1, 200, 24), (1, 1, 135, 80),
]  # batch, heads, seq, head_dim  # fmt: skip


@pytest.mark.parametrize(("shape", "ops", "rate"), pairs(HEADS, PRECISIONS, [0, 0.3]), indirect=["ops"])
def test_attention(trial, shape, rate):
    layers.attention(trial, *shape, rate)


@pytest.mark.parametrize("magnitude", [1e-3, 30.0])
def test_attention_of_large_and_tiny_scores(trial, magnitude):
    layers.attention(trial, 1, 2, 37, 32, 0, magnitude)


@pytest.mark.parametrize("growth", [0.02, 0.1, 2.0, -0.1])
def test_attention_of_scores_that_grow_from_key_to_key(trial, growth):
    """A slice of 64 keys adds 1.3, 6.4 and 128 to a row's maximum: AMD's sums shrink after 5.5 in all."""
    layers.attention(trial, 1, 1, 300, 32, 0, growth=growth)


@pytest.mark.parametrize(("shape", "ops", "rate"), pairs(HEADS, PRECISIONS, [0, 0.3]), indirect=["ops"])
def test_attention_backward(trial, shape, rate):
    layers.attention_backward(trial, *shape, rate)


@pytest.mark.parametrize("ops", ["fp32", "tf32", "bf16"], indirect=True)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFF0000, 0xFF810000])  # NaNs that bf16 can hold
def test_a_nan_in_a_query_reaches_all_that_depends_on_it(ops, arrays, rng, bits):
    """Probabilities are rounded to bf16 without a test for NaN."""
    seq, row, heads, dim = 37, 20, 2, 32
    qkv = rng.standard_normal((seq, 3, heads, dim)).astype(np.float32)
    qkv[row, 0, 1, 3] = np.array(bits, np.uint32).view(np.float32)
    mine, dqkv = arrays.of(qkv.reshape(seq, -1)), arrays.of(np.zeros((seq, 3 * heads * dim)))
    out, lse = arrays.of(np.zeros((seq, heads * dim))), arrays.of(np.zeros((1, heads, seq)), "float32")
    ops.attention(mine, out, lse)
    found = np.isnan(ops.to_host(out).reshape(seq, heads, dim))
    assert found[row, 1].all()
    assert found.sum() == dim, "another row's output is NaN"
    ops.attention_backward(arrays.of(rng.standard_normal((seq, heads * dim))), mine, out, lse, dqkv)
    dq, dk, dv = np.isnan(ops.to_host(dqkv).reshape(seq, 3, heads, dim)).swapaxes(0, 1)
    assert dq[row, 1].all()
    assert dk[: row + 1, 1].all()
    assert dv[: row + 1, 1].all()


@pytest.mark.parametrize(("target", "least"), [("sm_80", 64), ("sm_86", 48), ("sm_90a", 64), ("sm_120", 48)])
@pytest.mark.parametrize("name", ["attention", "attention_backward_queries", "attention_backward_keys"])
def test_a_block_of_float32_attention_fits_into_the_shared_memory_of_each_nvidia_gpu(name, target, least):
    for head_dim in range(1, 129):
        block = attention_block(name, head_dim, "tf32x3", True, False, shared_bytes(target))
        assert block.shared_bytes <= shared_bytes(target)
        assert least <= block.side <= 64


@pytest.mark.parametrize("device", [GPU, NUMBA], indirect=True)  # on emulated devices it takes minutes
@pytest.mark.parametrize("shape", [(1, 2, 1023, 64), (1, 1, 2048, 32), (1, 1, 2048, 128)])
@pytest.mark.parametrize("rate", [0, 0.3])
def test_attention_of_long_sequences(trial, shape, rate):
    layers.attention(trial, *shape, rate)
    layers.attention_backward(trial, *shape, rate)


@pytest.mark.parametrize(
    ("batch", "start", "heads", "hd"),
    [
        (1, 0, 1, 16), (1, 5, 2, 32), (1, 300, 2, 64), (1, 40, 1, 15), (1, 130, 1, 128), (1, 600, 1, 127),
        (1, 1100, 1, 16), (1, 0, 3, 8), (3, 70, 2, 16), (2, 9, 3, 8),
    ],
)  # fmt: skip
def test_attention_of_new_positions_against_a_cache(trial, batch, start, heads, hd):
    layers.attention_cached(trial, batch, start, heads, hd)


@pytest.mark.parametrize(("rows", "heads", "hd"), [(1, 1, 16), (5, 3, 24), (40, 2, 15), (130, 1, 128)])
def test_a_prompt_enters_its_place_of_the_cache_and_no_other(trial, rows, heads, hd):
    layers.fill_cache(trial, rows, heads, hd)
