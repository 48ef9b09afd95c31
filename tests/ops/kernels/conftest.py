"""Fixtures for the tests of every operation: arrays on the device of `ops`, random numbers, the rounding U."""

import numpy as np
import pytest

from tests.ops.kernels.bounds import TF32, u
from tests.support.devices import Arrays


@pytest.fixture
def arrays(ops):
    made = Arrays(ops)
    yield made
    made.check()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def U(ops):
    return {"fp32": u, "tf32": TF32, "bf16": 2.0**-8}[ops.precision]
