"""Checks of gpt/doctor/ whose findings fail a test at once. Errors on emulated GPUs are noted."""

import numpy as np

from gpt.doctor.trial import Trial, difference
from tests.support.amd import errors


def near(ops, ours, reference, bound):
    """Assert that `ours` is finite and |ours - reference| <= bound for every element."""
    ours = ops.to_host(ours)
    off = np.abs(ours.astype(np.float64) - reference)
    errors.note(ops, off, np.broadcast_to(bound, off.shape))
    found = difference(ours, reference, bound)
    assert not found, found


class TestingTrial(Trial):
    """A trial that asserts."""

    __test__ = False  # not a class of tests

    def near(self, name, ours, reference, bound):
        near(self.ops, ours, reference, bound)

    def require(self, holds, complaint):
        assert holds, complaint
