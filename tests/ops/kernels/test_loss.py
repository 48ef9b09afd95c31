"""Cross-entropy and sampling on every device, by kernels and by numba's loops, against the reference."""

import numpy as np
import pytest

from gpt.doctor import updates
from gpt.doctor.trial import REFERENCE, Arrays
from gpt.ops.interface import SamplingRule
from tests.support.grids import pairs

PRECISIONS = ["fp32", "bf16"]
# temperature, top_k, top_p
RULES = [(0, 0, 1), (1, 0, 1), (0.7, 5, 1), (1, 0, 0.8), (2, 50, 0.6), (1, 300, 0.9), (1, 1500, 0.9)]


SHAPES = [(1, 1), (3, 7), (5, 256), (4, 1000), (2, 8199), (2, 50257), (1, 2**17)]  # rows, vocabulary


@pytest.mark.parametrize(
    ("shape", "magnitude", "scale", "ops"),
    pairs(SHAPES, [1e-3, 3.0, 1e4], [None, 0.25], PRECISIONS),
    indirect=["ops"],
)
def test_cross_entropy_and_its_gradient(trial, shape, magnitude, scale):
    updates.softmax_cross_entropy(trial, *shape, magnitude, scale)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_makes_the_loss_not_finite(ops, arrays, poison):
    logits = np.zeros((1, 128))
    logits[0, 3] = poison
    losses, hits = (arrays.of(np.zeros(1), "float32") for _ in range(2))
    ops.softmax_cross_entropy(arrays.of(logits), arrays.of(np.array([1], np.int32)), losses, hits, 5)
    assert not np.isfinite(ops.to_host(losses)).any()


@pytest.mark.parametrize("rows", [1, 255, 1000])
def test_the_metrics_are_sums_in_float64(trial, rows):
    updates.add_sums(trial, rows)


def sampled(arrays, logits, seen, uniform, **options):
    """The id that the device of `arrays` draws. Asserts that it marks this id as seen, and no other."""
    (id,), (marks,) = updates.sampled(arrays, logits, seen, [uniform], [SamplingRule(**options)])
    assert np.array_equal(marks, seen | (np.arange(seen.size) == id))
    return id


# The block reads 16,384 logits of float32 or 32,768 of bf16 at a time, so that the last of these takes several turns.
@pytest.mark.parametrize(
    ("vocab", "rule", "ops"), pairs([1, 7, 1000, 2100, 33_001], RULES, PRECISIONS), indirect=["ops"]
)
def test_sampling_draws_what_the_reference_draws(trial, vocab, rule):
    updates.sample(trial, vocab, *rule)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0, 0, 1), (1, 5, 0.5), (1, 50, 1), (1, 1100, 0.9)])
def test_sampling_among_more_equal_logits_than_there_are_threads(arrays, temperature, top_k, top_p):
    logits, seen = np.where(np.arange(3000) < 5, 0, 1.5), (np.arange(3000) // 4 == 2).astype(np.uint8)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.2}
    for uniform in (0, 0.3, 0.77, 0.999):
        expected = sampled(Arrays(REFERENCE), logits, seen, uniform, **options)
        assert sampled(arrays, logits, seen, uniform, **options) == expected


@pytest.mark.parametrize("vocab", [9, 3000])
def test_sampling_treats_both_zeros_as_equal(arrays, vocab):
    logits = np.where(np.arange(vocab) % 2, 0.0, -0.0)
    greedy = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
    assert sampled(arrays, logits, np.zeros(vocab, np.uint8), 0.9, **greedy) == 0


def test_a_penalty_beyond_float32_leaves_a_logit_of_0_as_it_is(arrays):
    options = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1e300}
    assert sampled(arrays, np.array([0.0, 1.0]), np.array([1, 0], np.uint8), 0.5, **options) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("penalty", "temperature", "ops"),
    pairs([5e-324, 1e-320, 1e-45, 1e-38, 1e38, 1e308], [0, 5e-324, 1e-320, 1e-38, 1, 1e308], PRECISIONS),
    indirect=["ops"],
)
def test_sampling_draws_the_same_with_the_most_extreme_settings_and_no_warning(ops, penalty, temperature):
    logits = np.array([2.0, 0.5, -3.0, 0.0, -0.25, 1.0])
    for seen in np.uint8([[1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]):
        for top_k in (0, 3):
            options = {"temperature": temperature, "top_k": top_k, "top_p": 1, "repetition_penalty": penalty}
            drawn = {sampled(Arrays(each), logits, seen, 0.4, **options) for each in (ops, REFERENCE)}
            assert len(drawn) == 1


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_sampling_gives_minus_one_if_a_logit_is_not_finite(arrays, poison):
    options = {"temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
    logits, seen = np.array([1.0, poison, 2.0]), np.zeros(3, np.uint8)
    assert sampled(arrays, logits, seen, 0.5, **options) == -1
