"""The host chooses the blocks of matmul.hip, and the parts of a gradient, by the product's shape and the GPU."""

import pytest

from gpt.ops.gpu.launch import TILE_SIDE, WIDE_SIDE, Kernels
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.targets import warp_size


def kernels(type="bf16", target="gfx942", multiprocessors=304):
    return Kernels(NotingDevice(target, warp_size(target), True, multiprocessors), type)


def side(shape, depth=256, width=8, **others):
    return kernels(**others).product_side(*shape, depth, width)


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


def test_a_deep_product_on_cdna_has_wide_blocks_if_they_fill_the_gpu_once():
    assert side((1, 1536, 2432), depth=2048) == WIDE_SIDE  # 228 blocks: three for four multiprocessors
    assert side((1, 2048, 2432), depth=2048) == WIDE_SIDE  # 304
    assert side((1, 1536, 2432), depth=2047) == TILE_SIDE
    assert side((1, 1536, 2304), depth=2048) == TILE_SIDE  # 216
    assert side((1, 2048, 2560), depth=2048) == TILE_SIDE  # 320
    assert side((1, 1536, 2432), depth=2048, target="gfx1100") == TILE_SIDE


@pytest.mark.parametrize("other", [{"type": "float"}, {"target": "sm_90"}, {"width": 1}])
def test_blocks_are_wide_only_for_whole_vectors_and_the_bf16_matrix_units_of_amd(other):
    assert side((1, 4096, 4096), **other) == TILE_SIDE


@pytest.mark.parametrize(
    ("weight", "depth", "multiprocessors", "expected"),
    [
        ((256, 1024), 8192, 304, 16),  # 64 blocks: 19 times as many are four for each of 304 multiprocessors
        ((256, 1024), 9728, 304, 19),
        ((256, 256), 8192, 304, 32),  # no more, because a part has at least 256 rows
        ((256, 1024), 8192, 48, 2),  # 3 do not divide the depth
        ((256, 1024), 8191, 304, 1),  # a prime
        ((3072, 768), 8192, 48, 1),  # 576 blocks are enough
        ((8, 5), 511, 304, 1),  # too few rows
    ],
)
def test_the_gradient_of_a_small_weight_is_computed_in_parts(weight, depth, multiprocessors, expected):
    assert kernels(multiprocessors=multiprocessors).gradient_parts(*weight, depth) == expected
