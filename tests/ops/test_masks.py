"""Dropout masks: functions of key, site, row and column that look like independent coin tosses."""

import itertools
import math

import numpy as np
import pytest

from gpt.ops.cpu.masks import Mask, mix
from gpt.ops.interface import Dropout
from gpt.system.threads import Scratch

FLOAT = np.dtype(np.float64)
SIGMAS = 5  # a test of a fair coin fails once in 1.7 million times


def kept(rate=0.5, seed=0, counter=0, site=0, rows=1000, columns=100, first_row=0):
    mask = Mask(Dropout(rate, np.array([seed, counter], np.uint32), site), columns)
    numbers = np.arange(first_row, first_row + rows, dtype=np.uint64).astype(np.uint32)
    return mask.draw(numbers, columns, Scratch(), FLOAT) > 0


def test_the_hash_is_lowbias32():
    """Compares it with the finalizer's steps, written out on Python integers."""

    def literal(x):
        x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
        x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
        return x ^ x >> 16

    numbers = [0, 1, 2, 12345, 2**31, 2**32 - 1]
    assert mix(np.array(numbers, np.uint32)).tolist() == [literal(x) for x in numbers]


def test_the_documented_formula_gives_the_mask():
    def h(x):
        return int(mix(np.array([x % 2**32], np.uint32))[0])

    seed, counter, site, rate = 2**32 - 5, 77, 13, 0.37
    k0, k1 = (h(h(h(s) ^ counter) ^ site) for s in (seed, seed + 0x9E3779B9))

    def bits(row, column):
        both = h(((column & ~8) * 0x9E3779B9) % 2**32 ^ h(h(row ^ k0) ^ k1))
        return both >> 16 if column & 8 else both % 2**16

    expected = [[bits(row, column) >= round(rate * 2**16) for column in range(35)] for row in range(5)]
    assert kept(rate, seed, counter, site, rows=5, columns=35).tolist() == expected


def test_a_mask_can_begin_with_any_of_its_rows():
    mask = Mask(Dropout(0.5, np.zeros(2, np.uint32), site=0, first=30), 100)
    later = mask.draw(np.arange(20, dtype=np.uint32), 100, Scratch(), FLOAT) > 0
    assert np.array_equal(later, kept(rows=50)[30:])


@pytest.mark.parametrize("rate", [1e-4, 0.1, 0.5, 0.9])
def test_the_rate_is_met_within_the_binomial_spread(rate):
    sample = kept(rate, seed=3)
    assert abs(sample.mean() - (1 - rate)) < SIGMAS * math.sqrt(rate * (1 - rate) / sample.size)
    worst = SIGMAS * math.sqrt(rate * (1 - rate))
    assert np.abs(sample.mean(0) - (1 - rate)).max() < worst / math.sqrt(sample.shape[0]) + 1 / sample.shape[0]


def test_kept_elements_are_scaled_so_that_the_mean_stays():
    mask = Mask(Dropout(0.2, np.zeros(2, np.uint32), 0), 50)
    assert set(np.unique(mask.draw(np.arange(9, dtype=np.uint32), 50, Scratch(), FLOAT))) == {0.0, 1 / (1 - 0.2)}


def correlation_is_noise(a, b):
    """Whether a and b agree as often as independent fair coins: in n/2 of n pairs, give or take SIGMAS sqrt(n)/2."""
    return abs(np.mean(a == b) - 0.5) < SIGMAS * 0.5 / math.sqrt(a.size)


def test_different_seeds_counters_and_sites_give_unrelated_masks():
    masks = [kept(seed=seed, counter=counter, site=site) for seed, counter, site in itertools.product((0, 1), repeat=3)]
    for a, b in itertools.combinations(masks, 2):
        assert correlation_is_noise(a, b)


@pytest.mark.parametrize(
    ("down", "right"), [(0, 1), (1, 0), (1, 1), (2, 0), (0, 8), (1, 8), (0, 16), (0, 64), (256, 0)]
)
def test_neighbors_are_unrelated(down, right):
    sample = kept(seed=1, rows=600, columns=200)
    assert correlation_is_noise(sample[: 600 - down, : 200 - right], sample[down:, right:])


def test_rows_whose_elements_lie_beyond_32_bits_differ_from_those_at_the_start():
    """Row 2²⁸ of 1000 columns begins at element 2.7e11."""
    assert correlation_is_noise(kept(), kept(first_row=2**28))
    assert kept(first_row=2**32 - 1000).any()


def test_a_mask_does_not_depend_on_how_it_is_cut():
    whole = kept(rows=64, columns=50)
    assert np.array_equal(whole[10:30], kept(rows=20, columns=50, first_row=10))
    assert np.array_equal(whole[:, :7], kept(rows=64, columns=7))
