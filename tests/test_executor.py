"""The CPU executor: it runs what is right as a GPU would, and finds what is wrong whatever the order of the threads."""

import numpy as np
import pytest

from gpt.ops.kernels import Instance
from gpt.ops.masks import mix
from tests.executor import LAYOUTS, ORDERS, ExecutorDevice, ExecutorError, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: install g++")
COMMON = Instance.of("gelu.hip", {}).source.split('#line 1 "gelu.hip"')[0]
BF16_LAYOUTS = [name for name, (layout, _) in LAYOUTS.items() if layout]


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param


def launch(body, *arguments, layout="mma", order="forward", threads=64, block=None, grid=(1,), parameters="float* y"):
    device = ExecutorDevice(layout, order)
    source = f"{COMMON}\nKERNEL({threads}) kernel({parameters}) {{ {body} }}\n"
    device.kernel_of(source, "kernel")(grid, (block or threads,), arguments)


def failure(body, *arguments, **options) -> str:
    with pytest.raises(ExecutorError) as error:
        launch(body, *(arguments or (np.zeros(64, np.float32),)), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_thread_of_every_block_runs(order):
    y = np.zeros((3, 2, 64), np.float32)
    launch("y[(block_x() * 2 + block_y()) * 64 + thread_id()] = 1 + thread_id();", y, grid=(3, 2), order=order)
    assert (y == np.arange(1, 65)).all()


def test_a_barrier_lets_threads_see_what_others_wrote(order):
    y = np.zeros(64, np.float32)
    body = "SHARED(float, s, 64); s[thread_id()] = thread_id(); sync(); y[thread_id()] = s[63 - thread_id()];"
    launch(body, y, order=order)
    assert (y == np.arange(64)[::-1]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reductions_reach_every_lane(layout, order):
    y = np.zeros((2, 128), np.float32)
    body = """SHARED(float, s, 4); float v = thread_id();
      y[thread_id()] = warp_sum(v); y[128 + thread_id()] = block_sum<128 / WARP>(v, s);"""
    launch(body, y, layout=layout, order=order, threads=128)
    warp = LAYOUTS[layout][1]
    assert (y[0] == np.arange(128).reshape(-1, warp).sum(1).repeat(warp)).all()
    assert (y[1] == np.arange(128).sum()).all()


def test_a_missing_barrier_is_found_in_every_order(order):
    message = failure("SHARED(float, s, 64); s[thread_id()] = 1; y[thread_id()] = s[63 - thread_id()];", order=order)
    assert "s[" in message
    assert "since the last barrier" in message or "nobody has written it" in message


def test_writing_what_another_thread_reads_is_found_in_every_order(order):
    body = "SHARED(float, s, 64); s[thread_id()] = 1; sync(); y[thread_id()] = s[0]; if (thread_id() == 9) s[0] = 2;"
    assert "since the last barrier" in failure(body, order=order)


def test_two_threads_that_write_one_place_are_found(order):
    assert "s[0] is written, but thread" in failure("SHARED(float, s, 1); s[0] = 1;", order=order)


def test_reading_what_nobody_wrote_is_found():
    assert "s[5] is read, but nobody has written it" in failure("SHARED(float, s, 64); if (!thread_id()) y[0] = s[5];")


def test_what_an_earlier_block_wrote_counts_as_not_written():
    body = "SHARED(float, s, 1); if (thread_id() == 0) { if (block_x() == 0) s[0] = 1; y[0] = s[0]; }"
    assert failure(body, grid=(2,)).startswith("kernel: block (1, 0), thread 0: s[0] is read")


def test_a_place_outside_of_a_shared_array_is_found():
    assert "s[64] is outside of its 64 elements" in failure("SHARED(float, s, 64); s[thread_id() + 1] = 1;")


def test_a_vector_at_a_crooked_address_is_found():
    body = "SHARED(float, s, 64); s[thread_id()] = 1; sync(); if (!thread_id()) y[0] = s.vector(1).v[0];"
    assert "s[1] is not at a multiple of 16 bytes" in failure(body)


def test_a_barrier_that_not_all_threads_reach_is_found(order):
    assert "never reaches" in failure("if (thread_id() < 32) sync(); y[0] = 1;", order=order)


def test_a_shuffle_that_not_all_lanes_reach_is_found(order):
    assert "a shuffle, which thread" in failure("if (thread_id() % 2) y[0] = shuffle_xor(1, 1);", order=order)


def test_lanes_in_different_exchanges_are_found():
    body = """Tile<bf16>::Acc c = {}; Tile<bf16>::A a = {}; Tile<bf16>::B b = {};
      if (thread_id() % 2) y[0] = shuffle_xor(1, 1); else Tile<bf16>::multiply_add(c, a, b);"""
    assert "lanes of one warp are in" in failure(body)


def test_more_shared_memory_than_amd_has_is_refused():
    assert "more than 65536" in failure("SHARED(float, s, 16385); s[0] = 1;")


def test_a_block_larger_than_the_kernel_was_made_for_is_refused():
    assert "a block of 128 threads, but it was made for 64" in failure("y[0] = 1;", block=128)


def test_arguments_of_another_kind_are_refused():
    assert "takes p4" in failure("y[0] = n;", np.zeros(1, np.float32), np.int64(3), parameters="float* y, int n")


def test_what_does_not_compile_is_an_error():
    with pytest.raises(ExecutorError, match="nonsense"):
        launch("y[0] = nonsense;", np.zeros(1, np.float32))


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def value(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


TILE = """
  typedef Tile<T> M;
  SHARED(T, s, 2 * 16 * 24);
  for (int i = thread_id(); i < 512; i += WARP) s[i / 16 * 24 + i % 16] = i < 256 ? a[i] : b[i - 256];
  sync();
  Shared<T> left = s, right = s + 16 * 24;
  M::Acc c = {};
  M::multiply_add(c, LEFT, RIGHT);
  for (int i = 0; i < M::ELEMENTS; i++) y[M::row(i) * 16 + M::column(i)] = c.v[i];
  M::Acc z = {};
  M::multiply_add(z, M::to_a(c), M::load_b(right, 24));
  for (int i = 0; i < M::ELEMENTS; i++) y[256 + M::row(i) * 16 + M::column(i)] = z.v[i];
  for (int i = 0; i < M::SLOTS; i++) {
    float sum = 0, most = -1e30f;
    for (int e = 0; e < M::ELEMENTS; e++) if (M::slot(e) == i) { sum += c.v[e]; most = maximum(most, c.v[e]); }
    sum = M::row_sum(sum); most = M::row_max(most);
    y[512 + M::slot_row(i)] = sum; y[528 + M::slot_row(i)] = most;
  }"""


@pytest.mark.parametrize(("layout", "kind"), [(x, "float") for x in LAYOUTS] + [(x, "bf16") for x in BF16_LAYOUTS])
@pytest.mark.parametrize("left", ["load_a", "load_a_transposed"])
@pytest.mark.parametrize("right", ["load_b", "load_b_transposed"])
def test_the_tile_multiplies_chains_and_reduces(layout, kind, left, right):
    """Small integers: every product and sum is exact in bf16 and float32."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-2, 3, (2, 16, 16)).astype(np.float32)
    y = np.full(544, np.nan, np.float32)
    body = TILE.replace("LEFT", f"M::{left}(left, 24)").replace("RIGHT", f"M::{right}(right, 24)")
    arrays = (bf16(a), bf16(b)) if kind == "bf16" else (a, b)
    warp = LAYOUTS[layout][1]
    launch(
        body.replace("T>", f"{kind}>").replace("(T,", f"({kind},"), *arrays, y, layout=layout, threads=warp,
        parameters=f"const {kind}* a, const {kind}* b, float* y",
    )  # fmt: skip
    product = (a.T if "transposed" in left else a) @ (b.T if "transposed" in right else b)
    assert np.array_equal(y[:256].reshape(16, 16), product)
    assert np.array_equal(y[256:512].reshape(16, 16), product @ b)
    assert np.array_equal(y[512:528], product.sum(1))
    assert np.array_equal(y[528:], product.max(1))


def test_rounding_to_bf16_is_to_nearest_even_and_keeps_nan_and_infinity():
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, 3e38, np.inf, -np.inf, np.nan, 1e-40, 0, -0.0], np.float32)
    y = np.zeros(x.size, np.uint32)
    body = "if (thread_id() < 11) y[thread_id()] = pack(x[thread_id()], 0);"
    launch(body, x, y, parameters="const float* x, uint32* y")
    ours = value(y.astype(np.uint16))
    expected = value(bf16(x))
    assert np.isnan(ours[7])
    assert np.array_equal(np.delete(ours, 7), np.delete(expected, 7))
    assert ours[:3].tolist() == [1, 1, 1 + 2**-6]


def test_the_hash_behind_dropout_is_the_references():
    x = np.arange(64, dtype=np.uint32) * 77777777
    y = np.zeros_like(x)
    launch("y[thread_id()] = mix(x[thread_id()]);", x, y, parameters="const uint32* x, uint32* y")
    assert np.array_equal(y, mix(x.copy()))
