"""The host chooses the blocks of matmul.hip by the product's shape and the GPU."""

import pytest

from gpt.ops.gpu.launch import TILE_SIDE, WIDE_SIDE, Kernels
from tests.support.instances import NotingDevice


def side(shape, type="bf16", target="gfx942", width=8, multiprocessors=304):
    device = NotingDevice(target, warp=64, has_bf16=True)
    device.multiprocessors = multiprocessors
    return Kernels(device, type).product_side(*shape, width)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 4096, 4096), WIDE_SIDE),  # 1024 wide blocks for 304 multiprocessors
        ((1, 2432, 4096), WIDE_SIDE),  # 608: two for each
        ((1, 2304, 4096), TILE_SIDE),  # 576
        ((8, 1024, 1280), WIDE_SIDE),  # a stack: 8 times 80
    ],
)
def test_blocks_are_wide_if_each_multiprocessor_has_two(shape, expected):
    assert side(shape) == expected


@pytest.mark.parametrize("other", [{"type": "float"}, {"target": "sm_90"}, {"width": 1}])
def test_blocks_are_wide_only_for_whole_vectors_and_the_bf16_matrix_units_of_amd(other):
    assert side((1, 4096, 4096), **other) == TILE_SIDE
