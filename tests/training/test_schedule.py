"""The learning rate of each step."""

import math

import pytest

from gpt.config import TrainConfig
from gpt.schedule import decay_start, learning_rate


def test_the_rate_rises_linearly_then_falls_along_half_a_cosine():
    config = TrainConfig(total_steps=110, warmup_steps=10, learning_rate=1.0, min_lr=0.2)
    assert [learning_rate(step, config) for step in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(60, config) == pytest.approx(0.6)  # half-way: the middle of 1.0 and 0.2
    assert learning_rate(85, config) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.75)))
    assert learning_rate(110, config) == pytest.approx(0.2)


def test_without_a_warmup_the_rate_before_step_1_is_the_peak():
    assert learning_rate(0, TrainConfig(total_steps=1, warmup_steps=0, learning_rate=1.0)) == pytest.approx(1.0)


def test_a_constant_rate_stays_after_its_warmup():
    config = TrainConfig(total_steps=100, warmup_steps=4, learning_rate=1.0, schedule="constant")
    assert [learning_rate(step, config) for step in (2, 4, 5, 100)] == pytest.approx([0.5, 1.0, 1.0, 1.0])


def test_a_trapezoid_is_constant_and_then_falls_linearly():
    config = TrainConfig(
        total_steps=100, warmup_steps=10, learning_rate=1.0, min_lr=0.2, schedule="trapezoid", decay_fraction=0.4
    )
    rates = [learning_rate(step, config) for step in (5, 10, 11, 60, 70, 80, 100)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.8, 0.6, 0.2])


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, [1.0, 1.0, 1.0]), (1.0, [0.95, 0.45, 0.0]), (0.5, [1.0, 0.9, 0.0])]
)
def test_a_trapezoid_decays_in_nothing_in_a_part_or_in_all_that_follows_the_warmup(fraction, expected):
    config = TrainConfig(
        total_steps=20, warmup_steps=0, learning_rate=1.0, min_lr=0.0, schedule="trapezoid", decay_fraction=fraction
    )
    assert [learning_rate(step, config) for step in (1, 11, 20)] == pytest.approx(expected)


def test_until_its_decay_a_trapezoid_does_not_depend_on_how_long_it_is():
    short, long = (
        TrainConfig(total_steps=steps, warmup_steps=5, learning_rate=0.7, schedule="trapezoid") for steps in (50, 500)
    )
    assert all(learning_rate(step, short) == learning_rate(step, long) for step in range(1, decay_start(short) + 1))


def test_without_warmup_the_first_step_has_nearly_the_full_rate():
    config = TrainConfig(total_steps=100, warmup_steps=0, learning_rate=1.0)
    assert 0.99 < learning_rate(1, config) < 1.0
