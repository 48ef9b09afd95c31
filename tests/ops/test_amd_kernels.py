"""The functions in the headers of kernels/, as machine code of four AMD targets, on an emulator (tests/support/amd).

Matrices hold small integers, so that products and sums are exact and results can be compared for equality.
"""

import itertools

import numpy as np
import pytest

from gpt.ops.gpu.sources import expanded
from tests.support.amd import emulator

pytestmark = [
    pytest.mark.amd,
    pytest.mark.skipif(bool(emulator.unavailable()), reason=str(emulator.unavailable())),
]

HEADERS = expanded("tile_float.h")

PRODUCTS = """
// c [variant, 16, 16] = A B, for every way to load A and B; memory is as wide as STRIDE.
typedef Tile<TYPE> M;
constexpr int STRIDE = 24;

DEVICE void store(M::Acc acc, float* c) {
  UNROLL for (int i = 0; i < M::ELEMENTS; i++) c[M::row(i) * 16 + M::column(i)] = acc.v[i];
}

KERNEL(WARP) products(const TYPE* a, const TYPE* a_t, const TYPE* b, const TYPE* b_t, float* c) {
  SHARED(TYPE, left, 16 * STRIDE);
  SHARED(TYPE, left_t, 16 * STRIDE);
  SHARED(TYPE, right, 16 * STRIDE);
  SHARED(TYPE, right_t, 16 * STRIDE);
  for (int i = thread_id(); i < 16 * STRIDE; i += WARP) {
    left[i] = a[i];
    left_t[i] = a_t[i];
    right[i] = b[i];
    right_t[i] = b_t[i];
  }
  sync();
  M::Acc acc[5] = {};
  M::multiply_add(acc[0], M::load_a(left, STRIDE), M::load_b(right, STRIDE));
  M::multiply_add(acc[1], M::load_a(left, STRIDE), M::load_b_transposed(right_t, STRIDE));
  M::multiply_add(acc[2], M::load_a_transposed(left_t, STRIDE), M::load_b(right, STRIDE));
  M::multiply_add(acc[3], M::load_a(Window<TYPE, true>{a, STRIDE, 0, 15, 16}, 16), M::load_b(right, STRIDE));
  M::multiply_add(acc[4], M::load_a(Window<TYPE, false>{a, STRIDE, 2, 10, 13}, 16), M::load_b(right, STRIDE));
  UNROLL for (int i = 0; i < 5; i++) store(acc[i], c + 256 * i);
}

// c = (A B + A B) B, the accumulator being the second product's A
KERNEL(WARP) chain(const TYPE* a, const TYPE* b, float* c) {
  SHARED(TYPE, left, 16 * STRIDE);
  SHARED(TYPE, right, 16 * STRIDE);
  for (int i = thread_id(); i < 16 * STRIDE; i += WARP) {
    left[i] = a[i];
    right[i] = b[i];
  }
  sync();
  M::Acc first = {}, second = {};
  M::multiply_add(first, M::load_a(left, STRIDE), M::load_b(right, STRIDE));
  M::multiply_add(first, M::load_a(left, STRIDE), M::load_b(right, STRIDE));
  M::multiply_add(second, M::to_a(first), M::load_b(right, STRIDE));
  store(second, c);
}

// sums [16] and maxima [16] of the rows of x [16, 16]
KERNEL(WARP) rows(const float* x, float* sums, float* maxima) {
  float sum[M::SLOTS] = {}, most[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) most[s] = -infinity();
  UNROLL for (int i = 0; i < M::ELEMENTS; i++) {
    float v = x[M::row(i) * 16 + M::column(i)];
    sum[M::slot(i)] += v;
    most[M::slot(i)] = maximum(most[M::slot(i)], v);
  }
  UNROLL for (int s = 0; s < M::SLOTS; s++) {
    sums[M::slot_row(s)] = M::row_sum(sum[s]);
    maxima[M::slot_row(s)] = M::row_max(most[s]);
  }
}
"""

REDUCTIONS = """
KERNEL(256) reductions(const float* x, float* out) {
  SHARED(float, scratch, 256 / WARP);
  int i = block_x() * 256 + thread_id();
  out[4 * i] = warp_sum(x[i]);
  out[4 * i + 1] = warp_max(x[i]);
  out[4 * i + 2] = block_sum<256 / WARP>(x[i], scratch);
  out[4 * i + 3] = block_max<256 / WARP>(x[i], scratch);
}
"""

ARITHMETIC = """
KERNEL(64) arithmetic(const float* x, float* out, double* roots, bf16* rounded, uint32* packed, uint32* results) {
  int i = block_x() * 64 + thread_id();
  out[4 * i] = exp2_fast(x[i]);
  out[4 * i + 1] = log2_of(x[i]);
  out[4 * i + 2] = rsqrt_of(x[i]);
  out[4 * i + 3] = sqrt_of(x[i]);
  roots[i] = sqrt_of((double)x[i]);
  rounded[i] = from_float<bf16>(x[i]);
  packed[i] = pack(x[i], -x[i]);
  results[i] = pack_results(x[i], -x[i]);
}
"""


@pytest.fixture(scope="module", params=emulator.TARGETS)
def device(request):
    return emulator.EmulatorDevice(request.param)


def launch(device, source, name, grid, block, *args):
    device.kernel_of(HEADERS + source, name)((grid,), (block,), args)


def integers(*shape):
    """Random integers, so small that a chain of two products stays below 256, which bf16 holds exactly."""
    return np.random.default_rng(0).integers(-1, 2, shape).astype(np.float32)


def stored(x, kind):
    """x in the type in which kernels of this kind store it."""
    return (x.view(np.uint32) >> 16).astype(np.uint16) if kind == "bf16" else x


def padded(x, kind):
    """x [16, 16] in rows of 24. The padding holds a number so large that any result that used it would show it."""
    memory = np.full((16, 24), 1000, np.float32)
    memory[:, :16] = x
    return stored(memory, kind)


@pytest.mark.parametrize("kind", ["bf16", "float"])
def test_a_tile_multiplies_operands_however_they_are_stored(device, kind):
    a, b = integers(2, 16, 16)
    c = np.full((5, 16, 16), np.nan, np.float32)
    operands = [padded(np.ascontiguousarray(x), kind) for x in (a, a.T, b, b.T)]
    launch(device, f"#define TYPE {kind}\n{PRODUCTS}", "products", 1, device.warp, *operands, c)
    for variant in range(4):
        np.testing.assert_array_equal(c[variant], a @ b)
    window = np.where(np.arange(16) < 13, a[np.minimum(2 + np.arange(16), 10)], 0)
    np.testing.assert_array_equal(c[4], window @ b)


@pytest.mark.parametrize("kind", ["bf16", "float"])
def test_an_accumulator_becomes_the_next_products_operand(device, kind):
    a, b = integers(2, 16, 16)
    c = np.full((16, 16), np.nan, np.float32)
    launch(device, f"#define TYPE {kind}\n{PRODUCTS}", "chain", 1, device.warp, padded(a, kind), padded(b, kind), c)
    np.testing.assert_array_equal(c, (2 * a @ b) @ b)


@pytest.mark.parametrize("kind", ["bf16", "float"])
def test_rows_of_an_accumulator_are_summed_and_their_maximum_found(device, kind):
    x = np.random.default_rng(1).permutation(256).astype(np.float32).reshape(16, 16)
    sums, maxima = np.full((2, 16), np.nan, np.float32)
    launch(device, f"#define TYPE {kind}\n{PRODUCTS}", "rows", 1, device.warp, x, sums, maxima)
    np.testing.assert_array_equal(sums, x.sum(axis=1))
    np.testing.assert_array_equal(maxima, x.max(axis=1))


def test_warps_and_blocks_reduce(device):
    x = np.random.default_rng(2).permutation(512).astype(np.float32)
    out = np.full((2, 256, 4), np.nan, np.float32)
    launch(device, REDUCTIONS, "reductions", 2, 256, x, out)
    for column, (threads, reduce) in enumerate(itertools.product((device.warp, 256), (np.sum, np.max))):
        groups = x.reshape(-1, threads)
        want = np.broadcast_to(reduce(groups, axis=1, keepdims=True), groups.shape).reshape(2, 256)
        np.testing.assert_array_equal(out[..., column], want)


def test_arithmetic_is_off_by_at_most_two_units_in_the_last_place(device):
    x = np.geomspace(1e-3, 1e2, 128).astype(np.float32)
    out, roots = np.full((128, 4), np.nan, np.float32), np.full(128, np.nan)
    rounded, (packed, results) = np.zeros(128, np.uint16), np.zeros((2, 128), np.uint32)
    launch(device, ARITHMETIC, "arithmetic", 2, 64, x, out, roots, rounded, packed, results)
    wide = x.astype(np.float64)
    for column, want in enumerate((np.exp2(wide), np.log2(wide), 1 / np.sqrt(wide), np.sqrt(wide))):
        np.testing.assert_allclose(out[:, column], want, rtol=2 * 2.0**-23, atol=2.0**-23)
    np.testing.assert_allclose(roots, np.sqrt(wide), rtol=2 * 2.0**-52)


def test_bf16_is_rounded_to_nearest_even_and_keeps_infinity_and_nan(device):
    """The expected values follow the definition: the nearer of the two neighbors, or in a tie the even one.

    Operands that `pack` makes may be the other one in a tie (common.h).
    """
    random = np.random.default_rng(3).integers(0, 2**32, 57, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001], np.uint32)
    x = np.concatenate([random, ties]).view(np.float32)
    out, roots = np.zeros((64, 4), np.float32), np.zeros(64)
    rounded, (packed, results) = np.zeros(64, np.uint16), np.zeros((2, 64), np.uint32)
    launch(device, ARITHMETIC, "arithmetic", 1, 64, x, out, roots, rounded, packed, results)
    got = (rounded.astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(got[np.isnan(x)]).all()
    finite = ~np.isnan(x)
    bits = x.view(np.uint32)[finite].astype(np.uint64)
    low, rest = bits >> 16, bits & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & (low & 1 == 1))
    np.testing.assert_array_equal(rounded[finite], (low + up).astype(np.uint16))
    np.testing.assert_array_equal(results[finite], with_negative(low + up))
    np.testing.assert_array_equal(packed[finite], with_negative(low + (rest >= 0x8000)))


def with_negative(halves: np.ndarray) -> np.ndarray:
    """Words of a bf16 number and, in the high half, its negative."""
    return (halves | (halves ^ 0x8000) << 16).astype(np.uint32)


def test_arguments_that_the_kernel_does_not_take_are_refused(device):
    x, out = np.zeros(512, np.float32), np.zeros((512, 4), np.float32)
    with pytest.raises(TypeError, match="takes 2 arguments, not 1"):
        launch(device, REDUCTIONS, "reductions", 1, 256, x)
    with pytest.raises(TypeError, match="argument 1"):
        launch(device, REDUCTIONS, "reductions", 1, 256, x, np.int32(3))
    with pytest.raises(ValueError, match="compiled for 256 threads, not for 512"):
        launch(device, REDUCTIONS, "reductions", 1, 512, x, out)


SUMMANDS = """
KERNEL(WARP) summands(float* c) {
#if LAYOUT == LAYOUT_WMMA11 || LAYOUT == LAYOUT_WMMA12
  typedef Tile<bf16> M;
  M::Part zeros = 0;
  typedef float Elements __attribute__((ext_vector_type(M::ELEMENTS)));
  Elements first, second;
  asm volatile("v_mov_b32 v128, 1.0\\n"
               "v_wmma_f32_16x16x16_bf16 %0, %2, %2, 0\\n"
               "v_wmma_f32_16x16x16_bf16 %1, %2, %2, 2.0"
               : "=&v"(first), "=&v"(second) : "v"(zeros) : "v128");
  c[thread_id()] = first[0], c[WARP + thread_id()] = second[0];
#endif
}
"""


@pytest.mark.parametrize("target", ["gfx1100", "gfx1201"])
def test_the_emulated_matrix_unit_adds_constants(target):
    sums = np.full((2, 32), np.nan, np.float32)
    launch(emulator.EmulatorDevice(target), SUMMANDS, "summands", 1, 32, sums)
    assert (sums.T == (0, 2)).all(), "the constant 0 was read from v128"


NEIGHBORS = """
KERNEL(WARP) neighbors(float* x) {
  float value = x[thread_id()];
  asm volatile("s_nop 1\\n"
               "v_add_f32_dpp %0, %0, %0 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf" : "+v"(value));
  x[thread_id()] = value;
}
"""


def test_an_emulated_instruction_reads_all_lanes_before_it_writes_one(device):
    x = np.arange(device.warp, dtype=np.float32)
    launch(device, NEIGHBORS, "neighbors", 1, device.warp, x)
    np.testing.assert_array_equal(x, np.repeat(np.arange(device.warp // 2) * 4 + 1, 2))
