"""The devices that operations are tested on. The tests of an absent device are not collected; this file says why."""

import pytest

from tests.support.devices import DEVICES, EVERY, absent


@pytest.mark.parametrize("make", EVERY)
def test_operations_are_tested_on_this_device(make):
    if reason := absent(make):
        pytest.skip(f"no test runs on this device: {reason}")
    assert any(make in device.values for device in DEVICES)
    make()
