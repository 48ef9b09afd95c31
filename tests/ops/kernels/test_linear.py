"""Linear layers and sums over rows on every device, by kernels and by numba's loops, against the reference."""

from itertools import product

import pytest

from gpt.doctor import layers
from gpt.ops.gpu.launch import Kernels
from tests.support.devices import GPUS
from tests.support.grids import pairs

PRECISIONS = ["fp32", "bf16"]
ADAPTERS = [(True, None), (True, "gelu"), (True, "relu")]
LAYERS = [(False, None), (False, "gelu"), (False, "relu"), (True, None)]  # the last is the head: wte.T, no bias
SIZES = [
    (1, 1, 1), (3, 5, 7), (16, 16, 16), (65, 24, 40), (67, 129, 71), (130, 64, 200), (1, 24, 40),
    (1, 24, 20), (1, 24, 7),
]  # rows, in, out  # fmt: skip
# A single row that consists of whole vectors. The lengths call for blocks of each size: a thread reads its share of the
# row at once or in several turns, and the last row is too long for any of the blocks.
ROW_SIZES = [(1, 776, 264), (1, 1288, 24), (1, 3080, 40), (1, 4504, 24), (1, 10_008, 16)]
# An activation is applied to each sum, by code that knows only the kernel and whether a thread has a vector of sums:
# some sizes for each of these.
ACTIVATED = [(3, 5, 7), (16, 16, 16), (130, 64, 200), (1, 24, 40), (1, 24, 7), (1, 3080, 40)]
# Several sequences. In float32 blocks share up to 8 rows of these lengths, 8, 4 and, without a norm, 8 in four turns.
# In bf16 they share 16, 32 and 64, and the warps of a block take turns with rows of more than 2,048 elements.
BATCHES = [
    (2, 24, 7), (3, 5, 7), (10, 776, 24), (5, 1288, 24), (9, 3080, 24), (20, 40, 72), (70, 24, 8),
]  # sequences, in, out  # fmt: skip


@pytest.mark.parametrize(("size", "layer", "ops"), pairs(SIZES, LAYERS, PRECISIONS), indirect=["ops"])
def test_linear(trial, size, layer):
    layers.linear(trial, *size, *layer)


@pytest.mark.parametrize(
    ("size", "transposed", "ops"), pairs([*SIZES, *ROW_SIZES], [False, True], PRECISIONS), indirect=["ops"]
)
def test_norm_linear(trial, size, transposed):
    layers.norm_linear(trial, *size, transposed, None)


@pytest.mark.parametrize(
    ("size", "activation", "ops"),
    [
        *pairs(ACTIVATED, ["gelu", "relu"], PRECISIONS),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in product([*SIZES, *ROW_SIZES], ["gelu", "relu"], PRECISIONS)
            if case[0] not in ACTIVATED
        ),
    ],
    indirect=["ops"],
)
def test_norm_linear_with_an_activation(trial, size, activation):
    layers.norm_linear(trial, *size, False, activation)


@pytest.mark.parametrize(("size", "transposed", "ops"), pairs(BATCHES, [False, True], PRECISIONS), indirect=["ops"])
def test_norm_linear_gives_each_sequence_the_bits_that_it_has_alone(trial, size, transposed):
    layers.norm_linear(trial, *size, transposed, None)


@pytest.mark.parametrize(("rows", "d_in", "d_out"), [*SIZES, *ROW_SIZES])
def test_linear_adds(trial, rows, d_in, d_out):
    layers.linear_add(trial, rows, d_in, d_out)


@pytest.mark.parametrize(("rows", "d_in", "d_out"), BATCHES)
def test_linear_add_gives_each_sequence_the_bits_that_it_has_alone(trial, rows, d_in, d_out):
    layers.linear_add(trial, rows, d_in, d_out)


@pytest.mark.parametrize(("size", "layer", "ops"), pairs(SIZES, LAYERS, PRECISIONS), indirect=["ops"])
def test_linear_backward(trial, size, layer):
    layers.linear_backward(trial, *size, *layer)


@pytest.mark.parametrize(("size", "transposed", "ops"), pairs(SIZES, [False, True], PRECISIONS), indirect=["ops"])
def test_the_gradient_of_a_weight(trial, size, transposed):
    layers.weight_gradient(trial, *size, transposed, fresh=False)


@pytest.mark.parametrize(("size", "transposed", "ops"), pairs(SIZES[:6], [False, True], PRECISIONS), indirect=["ops"])
def test_a_gradient_that_begins_anew_is_not_added_to_what_was_there(trial, size, transposed):
    layers.weight_gradient(trial, *size, transposed, fresh=True)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("size", "transposed", "parts", "ops"),
    [
        *((*case, precision) for precision in PRECISIONS for case in [
            ((512, 72, 136), False, 2), ((512, 72, 136), True, 2), ((1500, 7, 5), False, 5), ((520, 130, 40), True, 2),
        ]),
        ((8192, 16, 24), False, 32, "bf16"),
    ],
    indirect=["ops"],
)  # fmt: skip
@pytest.mark.parametrize("device", GPUS, indirect=True)
def test_the_gradient_of_a_small_weight_is_computed_in_parts(trial, size, transposed, parts, fresh, monkeypatch):
    """That needs a GPU with many multiprocessors. The parts of 520 rows are no whole slices of shared memory."""
    monkeypatch.setattr(trial.ops.device, "multiprocessors", 304)
    assert Kernels(trial.ops.device, "bf16").gradient_parts(*size[1:], size[0]) == parts
    layers.weight_gradient(trial, *size, transposed, fresh)


@pytest.mark.parametrize(("count", "n"), [(1, 1), (7, 30), (9, 128), (256, 640)])
def test_partial_sums_are_added(trial, count, n):
    layers.add_partials(trial, count, n)


@pytest.mark.parametrize(("rows", "rank", "width"), [(70, 16, 72), (5, 3, 7)])
@pytest.mark.parametrize(("transposed", "activation"), ADAPTERS)
def test_an_adapter_is_added_to_its_layer(trial, rows, rank, width, transposed, activation):
    layers.linear(trial, rows, rank, width, transposed, activation, adds=True)
    layers.linear_backward(trial, rows, width, rank, transposed, activation, adds=True)
