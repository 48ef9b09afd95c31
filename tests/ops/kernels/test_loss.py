"""Cross-entropy and sampling on every device, by kernels and by numba's loops, against the reference."""

import numpy as np
import pytest

from gpt.ops.interface import SamplingRule
from tests.ops.kernels.bounds import EXP, REFERENCE, near, u
from tests.support.devices import Arrays


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (3, 7), (5, 256), (4, 1000), (2, 8199), (2, 50257), (1, 2**17)])
@pytest.mark.parametrize("magnitude", [1e-3, 3.0, 1e4])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_cross_entropy_and_its_gradient(ops, arrays, rng, U, rows, vocab, magnitude, scale):
    padded = -(-vocab // 128) * 128
    logits = arrays.rounded(rng.standard_normal((rows, padded)) * magnitude)
    logits[:, vocab:] = 1e30  # the values of the padding must not count
    labels = rng.integers(0, vocab, rows).astype(np.int32)
    labels[0] = np.argmax(logits[0, :vocab])
    mine = arrays.of(logits), arrays.of(labels), *(arrays.poisoned(rows, dtype="float32") for _ in range(2))
    ops.softmax_cross_entropy(*mine, vocab, scale)
    losses, hits, p = np.empty(rows), np.empty(rows), logits.copy()
    REFERENCE.softmax_cross_entropy(p, labels, losses, hits, vocab, scale)
    largest = np.abs(logits[:, :vocab]).max(1)
    exponent = 4 * u * largest  # the rounding of (x - max) log2 e
    near(ops, mine[2], losses, (vocab + 4) * u + 2 * EXP + 2 * exponent + 4 * u * np.abs(losses))
    assert np.array_equal(ops.to_host(mine[3]), hits)
    if scale is None:
        assert np.array_equal(ops.to_host(mine[0])[:, :vocab], logits[:, :vocab]), "the logits have changed"
    else:
        size = np.abs(p) + 2 * scale * (np.arange(padded) == labels[:, None])
        near(ops, mine[0], p, ((vocab + 4) * u + 2 * EXP + 2 * exponent[:, None] + U) * size + 1e-30)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_makes_the_loss_not_finite(ops, arrays, poison):
    logits = np.zeros((1, 128))
    logits[0, 3] = poison
    losses, hits = (arrays.of(np.zeros(1), "float32") for _ in range(2))
    ops.softmax_cross_entropy(arrays.of(logits), arrays.of(np.array([1], np.int32)), losses, hits, 5)
    assert not np.isfinite(ops.to_host(losses)).any()


@pytest.mark.parametrize("rows", [1, 255, 1000])
def test_the_metrics_are_sums_in_float64(ops, arrays, rng, rows):
    losses, hits = rng.standard_normal(rows).astype(np.float32), rng.integers(0, 2, rows).astype(np.float32)
    out = arrays.of(np.array([10.0, 20.0]), "float64")
    ops.add_sums(arrays.of(losses, "float32"), arrays.of(hits, "float32"), out)
    expected = np.array([10 + losses.sum(dtype=np.float64), 20 + hits.sum(dtype=np.float64)])
    near(ops, out, expected, rows * 2.0**-52 * (np.abs(losses).sum(dtype=np.float64) + 20))


def sampled(ops, arrays, logits, seen, uniform, **options):
    """The id that `ops` draw. Asserts that they mark this id as seen, and no other."""
    marks, out = arrays.of(seen), arrays.of(np.array([-7], np.int32))
    rule = SamplingRule(**options)
    ops.sample(arrays.of(logits), marks, arrays.of(np.array([uniform]), "float64"), out, rule)
    (id,) = ops.to_host(out).tolist()
    assert np.array_equal(ops.to_host(marks), seen | (np.arange(seen.size) == id))
    return id


@pytest.mark.parametrize("vocab", [1, 7, 1000, 2100, 60_000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0, 0, 1), (1, 0, 1), (0.7, 5, 1), (1, 0, 0.8), (2, 50, 0.6), (1, 300, 0.9), (1, 1500, 0.9)],
)
def test_sampling_draws_what_the_reference_draws(ops, arrays, rng, vocab, temperature, top_k, top_p):
    """Sums of weights are off by at most 1e-4 of their total.

    If a draw is nearer than that to the boundary between two ids, either id is right.
    """
    logits = arrays.rounded(rng.standard_normal(vocab) * 2)
    logits[rng.integers(0, vocab, vocab // 4)] = logits[0]  # ties
    seen = np.isin(np.arange(vocab), rng.integers(0, vocab, 9)).astype(np.uint8)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.3}
    for uniform in np.append(rng.random(8), [0, 1 - 2**-24]):
        near_by = {
            sampled(REFERENCE, Arrays(REFERENCE), logits, seen, np.clip(uniform + shift, 0, 1 - 2**-40), **options)
            for shift in (-1e-4, 0, 1e-4)
        }
        if top_p < 1:
            near_by |= {
                sampled(REFERENCE, Arrays(REFERENCE), logits, seen, uniform, **{**options, "top_p": top_p + shift})
                for shift in (-1e-4, 1e-4)
            }
        assert sampled(ops, arrays, logits, seen, uniform, **options) in near_by


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0, 0, 1), (1, 5, 0.5), (1, 50, 1), (1, 1100, 0.9)])
def test_sampling_among_more_equal_logits_than_there_are_threads(ops, arrays, temperature, top_k, top_p):
    logits, seen = np.where(np.arange(3000) < 5, 0, 1.5), (np.arange(3000) // 4 == 2).astype(np.uint8)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.2}
    for uniform in (0, 0.3, 0.77, 0.999):
        expected = sampled(REFERENCE, Arrays(REFERENCE), logits, seen, uniform, **options)
        assert sampled(ops, arrays, logits, seen, uniform, **options) == expected


@pytest.mark.parametrize("vocab", [9, 3000])
def test_sampling_treats_both_zeros_as_equal(ops, arrays, vocab):
    logits = np.where(np.arange(vocab) % 2, 0.0, -0.0)
    greedy = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
    assert sampled(ops, arrays, logits, np.zeros(vocab, np.uint8), 0.9, **greedy) == 0


def test_a_penalty_beyond_float32_leaves_a_logit_of_0_as_it_is(ops, arrays):
    options = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1e300}
    assert sampled(ops, arrays, np.array([0.0, 1.0]), np.array([1, 0], np.uint8), 0.5, **options) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("penalty", [5e-324, 1e-320, 1e-45, 1e-38, 1e38, 1e308])
@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-320, 1e-38, 1, 1e308])
def test_sampling_draws_the_same_with_the_most_extreme_settings_and_no_warning(ops, arrays, penalty, temperature):
    logits = np.array([2.0, 0.5, -3.0, 0.0, -0.25, 1.0])
    for seen in np.uint8([[1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]):
        for top_k in (0, 3):
            options = {"temperature": temperature, "top_k": top_k, "top_p": 1, "repetition_penalty": penalty}
            drawn = {sampled(each, Arrays(each), logits, seen, 0.4, **options) for each in (ops, REFERENCE)}
            assert len(drawn) == 1


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_sampling_gives_minus_one_if_a_logit_is_not_finite(ops, arrays, poison):
    options = {"temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
    logits, seen = np.array([1.0, poison, 2.0]), np.zeros(3, np.uint8)
    assert sampled(ops, arrays, logits, seen, 0.5, **options) == -1
