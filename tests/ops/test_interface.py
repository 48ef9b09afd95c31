"""Every implementation of the operations has the methods of gpt/ops/interface.py, with the same parameters."""

import importlib.util
import inspect

import pytest

from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.device import CupyDevice
from gpt.ops.gpu.interface import Device
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.interface import Arithmetic, Operations
from tests.support.host_device import HostDevice


def numba_ops():
    if not (importlib.util.find_spec("numba") and importlib.util.find_spec("scipy")):
        pytest.skip('numba is missing: pip install "hipgpt[numba]"')
    from gpt.ops.cpu.numba_operations import NumbaOps

    return NumbaOps


def methods(*protocols):
    return [
        (name, method)
        for protocol in protocols
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ]


def parameters(function):
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("kind", [lambda: CpuOps, numba_ops, lambda: GpuOps], ids=["CPU", "numba", "GPU"])
@pytest.mark.parametrize(("name", "method"), methods(Arithmetic, Operations))
def test_every_operation_has_the_parameters_of_the_contract(kind, name, method):
    ours = getattr(kind(), name)
    assert ours is not method, "inherited from the contract, whose method does nothing"
    assert parameters(ours) == parameters(method)


@pytest.mark.parametrize(("name", "method"), methods(Device))
def test_a_gpu_has_the_methods_of_the_contract(name, method):
    assert getattr(CupyDevice, name) is not method
    assert parameters(getattr(CupyDevice, name)) == parameters(method)


@pytest.mark.parametrize(("name", "method"), [each for each in methods(Device) if each[0] in vars(HostDevice)])
def test_a_stand_in_for_a_gpu_has_the_parameters_of_the_contract(name, method):
    assert parameters(getattr(HostDevice, name)) == parameters(method)


@pytest.mark.parametrize(("name", "method"), methods(Arithmetic, Operations, Device))
def test_the_contract_defines_every_method(name, method):
    assert inspect.getdoc(method)
