"""The time of training, by a clock that the test moves."""

import pytest

from gpt.trainer import clock
from gpt.trainer.clock import Clock


@pytest.fixture
def time(monkeypatch):
    """What the clock reads, in a list of one number of seconds."""
    now = [1000.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


def test_pauses_count_neither_for_a_lap_nor_for_the_run(time):
    measured = Clock(step=10, spent=50.0, wait=lambda: None)
    time[0] += 4
    with measured.paused():
        assert measured.seconds() == 54
        time[0] += 100
        assert measured.seconds() == 54, "it stands still"
    time[0] += 2
    assert measured.seconds() == 56
    assert measured.seconds_per_step(step=13) == 2  # 6 s for 3 steps
    assert measured.lap(step=13) == 2
    time[0] += 3
    assert measured.lap(step=14) == 3
    assert measured.seconds() == 59


def test_the_steps_so_far_are_done_before_a_time_is_taken(time):
    def wait():
        time[0] += 5

    measured = Clock(step=0, spent=0.0, wait=wait)
    assert measured.lap(step=1) == 5
    with measured.paused():
        pass
    assert measured.seconds() == 10


def test_a_progress_bar_is_due_at_most_twice_a_second(time):
    measured, shown = Clock(step=0, spent=0.0, wait=lambda: None), 0
    for _ in range(100):
        time[0] += 0.1
        shown += measured.due()
    assert 15 <= shown <= 20
