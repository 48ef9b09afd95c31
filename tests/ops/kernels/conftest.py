"""Fixtures for the tests of every operation: a trial on the device of `ops`, with its arrays and random numbers."""

import pytest

from tests.ops.kernels.bounds import TestingTrial


@pytest.fixture
def trial(ops):
    made = TestingTrial(ops)
    yield made
    made.finish()


@pytest.fixture
def arrays(trial):
    return trial.arrays


@pytest.fixture
def rng(trial):
    return trial.rng


@pytest.fixture
def U(trial):
    return trial.U
