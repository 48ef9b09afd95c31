"""The CPU executor runs correct kernels as a GPU would, and finds faults in every order of the threads."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gpt.ops.cpu.masks import Mask, mix
from gpt.ops.gpu.sources import expanded
from gpt.ops.interface import Dropout
from gpt.system.threads import Scratch
from tests.support import ROOT
from tests.support.executor import LAYOUTS, ORDERS, ExecutorDevice, ExecutorError, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: install g++")
HEADERS = expanded("tile_float.h")
BF16_LAYOUTS = [name for name, (layout, _) in LAYOUTS.items() if layout]


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param


def launch(body, *arguments, layout="mma", order="forward", threads=64, block=None, grid=(1,), parameters="float* y"):
    device = ExecutorDevice(layout, order)
    source = f'{HEADERS}\n#line 1 "kernel.hip"\nKERNEL({threads}) kernel({parameters}) {{ {body} }}\n'
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shuffle_reads_any_lane_of_the_warp(layout, order):
    y, warp = np.zeros(128, np.float32), LAYOUTS[layout][1]
    launch("y[thread_id()] = shuffle(thread_id(), (lane_id() + 5) % WARP);", y, layout=layout, order=order, threads=128)
    lanes = np.arange(128)
    assert (y == lanes // warp * warp + (lanes % warp + 5) % warp).all()


def test_a_declaration_of_shared_memory_is_one_array_however_often_a_thread_comes_by_it():
    y = np.zeros(64, np.float32)
    body = """for (int i = 0; i < 3; i++) {
        SHARED(float, s, 8192);  // two such arrays would take all 64 KiB
        if (i == 0) s[thread_id()] = thread_id();
        if (i == 2) y[thread_id()] = s[thread_id()];
      }"""
    launch(body, y)
    assert (y == np.arange(64)).all()


def test_launches_may_run_at_once():
    body = """SHARED(float, s, 64);
      for (int i = 0; i < 50; i++) { s[thread_id()] = n + i; sync(); y[thread_id()] += s[63 - thread_id()]; sync(); }"""
    outputs = np.zeros((8, 64), np.float32)

    def run(n):
        launch(body, outputs[n], np.int32(n), parameters="float* y, int n")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(8)))
    assert (outputs == 50 * np.arange(8)[:, None] + np.arange(50).sum()).all()


def test_threads_take_turns_in_the_order_that_was_asked_for():
    """The kernel counts which thread comes when, without barriers. A correct kernel never does that."""
    turns = {}
    for order in ORDERS:
        y = np.zeros((2, 64), np.float32)
        launch("int n = count[0]++; y[thread_id()] = n; sync(); n = count[0]++; y[64 + thread_id()] = n;",
               y, np.zeros(1, np.int32), order=order, parameters="float* y, int* count")  # fmt: skip
        turns[order] = y
    forward = np.arange(128).reshape(2, 64)
    assert (turns["forward"] == forward).all()
    assert (turns["reversed"] == forward[:, ::-1]).all()
    first, second = turns["seeded"]
    assert sorted(first) == list(range(64))
    assert (first != second - 64).any(), "the order of both rounds is the same"


def test_a_missing_barrier_is_found_in_every_order(order):
    message = failure("SHARED(float, s, 64); s[thread_id()] = 1; y[thread_id()] = s[63 - thread_id()];", order=order)
    assert "s[" in message
    assert "since the last barrier" in message or "nobody has written it" in message


def test_writing_an_element_that_another_thread_reads_is_found_in_every_order(order):
    body = "SHARED(float, s, 64); s[thread_id()] = 1; sync(); y[thread_id()] = s[0]; if (thread_id() == 9) s[0] = 2;"
    assert "since the last barrier" in failure(body, order=order)


def test_two_threads_that_write_one_element_are_found(order):
    assert "s[0] is written, but thread" in failure("SHARED(float, s, 1); s[0] = 1;", order=order)


def test_reading_an_element_that_nobody_wrote_is_found():
    assert "s[5] is read, but nobody has written it" in failure("SHARED(float, s, 64); if (!thread_id()) y[0] = s[5];")


def test_an_element_that_an_earlier_block_wrote_counts_as_not_written():
    body = "SHARED(float, s, 1); if (thread_id() == 0) { if (block_x() == 0) s[0] = 1; y[0] = s[0]; }"
    assert failure(body, grid=(2,)).startswith("kernel: block (1, 0), thread 0: s[0] is read")


def test_an_access_outside_of_a_shared_array_is_found():
    assert "s[64] is outside of its 64 elements" in failure("SHARED(float, s, 64); s[thread_id() + 1] = 1;")


def test_a_vector_at_an_unaligned_address_is_found():
    body = "SHARED(float, s, 64); s[thread_id()] = 1; sync(); if (!thread_id()) y[0] = s.vector(1).v[0];"
    assert "s[1] is not at a multiple of 16 bytes" in failure(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("SHARED(float, s, 64); if (t < 63) s[t] = 1; sync(); y[t] = s.vector(60).v[0];", "s[63] is read, but nobody"),
        ("SHARED(float, s, 62); if (t < 62) s[t] = 1; sync(); y[t] = s.vector(60).v[0];", "s[62] is outside of its 62"),
        ("SHARED(bf16, s, 64); if (t != 1) s[t] = bf16(); sync(); y[t] = s.word(0);", "s[1] is read, but nobody"),
        ("SHARED(float, s, 64); if (t == 1) s[3] = 1; if (t == 2) s.set_vector(0, {});", "s[3] is written, but thread"),
        ("SHARED(float, s, 62); if (t == 1) s.set_vector(60, {});", "s[62] is outside of its 62"),
    ],
)
def test_every_element_of_a_vector_is_checked(body, message):
    assert message in failure(f"int t = thread_id(); {body}")


def test_a_barrier_that_not_all_threads_reach_is_found(order):
    assert "never reaches" in failure("if (thread_id() < 32) sync(); y[0] = 1;", order=order)


def test_a_shuffle_that_not_all_lanes_reach_is_found(order):
    assert "a shuffle, which thread" in failure("if (thread_id() % 2) y[0] = shuffle_xor(1, 1);", order=order)


def test_a_shuffle_of_less_than_a_warp_is_found():
    assert "its warp has only 8 lanes" in failure("y[0] = warp_sum(1);", threads=40)


def test_a_shuffle_from_a_lane_that_is_not_there_is_found():
    assert "a shuffle asks for lane 32 of 32" in failure("y[0] = shuffle(1, 32);")


def test_lanes_in_different_exchanges_are_found():
    body = """Tile<bf16>::Acc c = {}; Tile<bf16>::A a = {}; Tile<bf16>::B b = {};
      if (thread_id() % 2) y[0] = shuffle_xor(1, 1); else Tile<bf16>::multiply_add(c, a, b);"""
    assert "waits in a matrix product, which thread 1 never reaches: it waits in a shuffle" in failure(body)


def test_an_error_says_which_kernel_block_thread_and_line():
    body = "SHARED(float, s, 64);\n bool last = block_x() * block_y() == 2;\n if (last && thread_id() > 6) *y = s[64];"
    expected = "kernel: block (2, 1), thread 7: s[64] is outside of its 64 elements"
    message = failure(body, grid=(3, 2))
    assert message.startswith(expected)
    if shutil.which("addr2line"):
        assert message == f"{expected} (kernel.hip:3)"


def test_the_first_of_many_failing_blocks_is_named():
    assert "block (0, 0)" in failure("SHARED(float, s, 1); y[0] = s[0];", grid=(50,))


def test_a_launch_after_one_that_failed_is_not_disturbed():
    y = np.zeros(64, np.float32)
    failure("SHARED(float, s, 64); if (thread_id() < 32) sync(); y[0] = s[0];")
    launch("SHARED(float, s, 64); s[thread_id()] = 3; sync(); y[thread_id()] = s[63 - thread_id()];", y)
    assert (y == 3).all()


def test_more_shared_memory_than_amd_has_is_refused():
    assert "more than 65536" in failure("SHARED(float, s, 16385); s[0] = 1;")


def test_a_launch_that_asks_for_more_shared_memory_gets_so_much_and_no_more():
    source = f"{HEADERS}\nKERNEL(64) kernel(float* y) {{ SHARED(float, s, 20000); s[0] = 3; y[0] = s[0]; }}\n"
    y, device = np.zeros(1, np.float32), ExecutorDevice("mma")
    device.kernel_of(source, "kernel", 80_000)((1,), (1,), (y,))
    assert y[0] == 3
    with pytest.raises(ExecutorError, match="80000 bytes of shared memory with s, more than 79996"):
        device.kernel_of(source, "kernel", 79_996)((1,), (1,), (y,))


def test_a_block_larger_than_the_kernel_was_made_for_is_refused():
    assert "a block of 128 threads, but it was made for 64" in failure("y[0] = 1;", block=128)


@pytest.mark.parametrize("grid", [(0,), (1, 65536), (1, 1, 2)])
def test_a_grid_that_a_gpu_would_not_take_is_refused(grid):
    assert "a grid of" in failure("y[0] = 1;", grid=grid)


WRONG = [[], [np.int64(3)], [np.float32(3)], [None], [np.zeros(1)], [np.int32(3), np.int32(3)]]


@pytest.mark.parametrize("given", WRONG)
def test_arguments_of_another_number_or_kind_are_refused(given):
    assert "it takes pi, but" in failure("y[0] = n;", np.zeros(1, np.float32), *given, parameters="float* y, int n")


def test_an_array_that_is_not_contiguous_is_refused():
    assert "argument 0 is not contiguous" in failure("y[0] = 1;", np.zeros((4, 4), np.float32).T)


def test_a_source_that_does_not_compile_is_an_error():
    with pytest.raises(ExecutorError, match="nonsense"):
        launch("y[0] = nonsense;", np.zeros(1, np.float32))


def test_a_kernel_that_asks_for_the_layout_without_including_tile_h_is_an_error():
    """Without tile.h, kernels are compiled once for all layouts whose warps have the same width."""
    for line in ("#if LAYOUT", "static_assert(LAYOUT != 0);\n#if 1"):
        source = f"{expanded('common.h')}\n{line}\nKERNEL(64) kernel(float* y) {{}}\n#endif\n"
        with pytest.raises(ExecutorError, match="ONLY_WITH_TILE_H"):
            ExecutorDevice("mma").kernel_of(source, "kernel")


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
  M::A first = a_turned ? M::load_a_transposed(left, 24) : M::load_a(left, 24);
  M::Acc c = {};
  if (b_turned) M::multiply_add(c, first, M::load_b_transposed(right, 24));
  else M::multiply_add(c, first, M::load_b(right, 24));
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
@pytest.mark.parametrize("a_turned", [0, 1])
@pytest.mark.parametrize("b_turned", [0, 1])
def test_the_tile_multiplies_chains_and_reduces(layout, kind, a_turned, b_turned):
    """Elements are integers, so that sums are exact: |AB| <= 3200, |(AB) B| <= 102,400.

    As a bf16 operand AB is rounded to 8 bits.
    """
    rng = np.random.default_rng(0)
    a, b = rng.integers(-100, 101, (16, 16)).astype(np.float32), rng.integers(-2, 3, (16, 16)).astype(np.float32)
    y = np.full(544, np.nan, np.float32)
    arrays = (bf16(a), bf16(b)) if kind == "bf16" else (a, b)
    warp = LAYOUTS[layout][1]
    launch(
        TILE.replace("T>", f"{kind}>").replace("(T,", f"({kind},"), *arrays, y, *np.int32([a_turned, b_turned]),
        layout=layout, threads=warp,
        parameters=f"const {kind}* a, const {kind}* b, float* y, int a_turned, int b_turned",
    )  # fmt: skip
    product = (a.T if a_turned else a) @ (b.T if b_turned else b)
    assert np.array_equal(y[:256].reshape(16, 16), product)
    operand = value(bf16(product)) if kind == "bf16" else product
    assert np.array_equal(y[256:512].reshape(16, 16), operand @ b)
    assert np.array_equal(y[512:528], product.sum(1))
    assert np.array_equal(y[528:], product.max(1))


@pytest.mark.parametrize("layout", BF16_LAYOUTS)
@pytest.mark.parametrize("even", ["true", "false"])
def test_the_tile_reads_rows_of_global_memory_as_far_as_they_go(layout, even):
    """The window is rows 3 to 7, then row 7 again and again, and 12 of 16 columns, then zeros."""
    a, b = np.random.default_rng(0).integers(-9, 10, (2, 16, 16)).astype(np.float32)
    y = np.full((16, 16), np.nan, np.float32)
    body = f"""typedef Tile<bf16> M; SHARED(bf16, right, 256);
      for (int i = thread_id(); i < 256; i += WARP) right[i] = b[i];
      sync();
      M::Acc c = {{}};
      M::multiply_add(c, M::load_a(Window<bf16, {even}>{{a, 16, 3, 7, 12}}, 16), M::load_b(right, 16));
      for (int i = 0; i < M::ELEMENTS; i++) y[M::row(i) * 16 + M::column(i)] = c.v[i];"""
    launch(body, bf16(a), bf16(b), y, layout=layout, threads=LAYOUTS[layout][1],
           parameters="const bf16* a, const bf16* b, float* y")  # fmt: skip
    window = a[np.minimum(3 + np.arange(16), 7)] * (np.arange(16) < 12)
    assert np.array_equal(y, window @ b)


# Every high half of a float, with low halves around the tie of two roundings
HALVES = np.add.outer(
    np.arange(2**16, dtype=np.uint32) << 16, np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
)


def nearest_even(bits):
    """The bf16 that is nearest to each float; of two that are equally near, the even one. Not for NaN."""
    low, rest = bits >> 16, bits & 0xFFFF
    return low + ((rest > 0x8000) | ((rest == 0x8000) & (low & 1 == 1)))


def test_rounding_to_bf16_is_to_nearest_even_and_keeps_nan_and_infinity():
    y = np.zeros(HALVES.shape, np.uint16)
    body = (
        "int i = block_x() * 64 + thread_id(); for (int k = 6 * i; k < 6 * i + 6; k++) y[k] = from_float<bf16>(x[k]);"
    )
    launch(body, HALVES.view(np.float32), y, grid=(1024,), parameters="const float* x, bf16* y")
    nan = np.isnan(HALVES.view(np.float32))
    assert nan.sum() == 2 * (127 * 6 + 5)
    assert np.array_equal(y[~nan], nearest_even(HALVES[~nan]))
    assert np.isnan(value(y[nan])).all()


def nearest_away(bits: np.ndarray) -> np.ndarray:
    """The bf16 that is nearest to each float; of two that are equally near, the one farther from 0. Not for NaN."""
    return ((bits.astype(np.uint64) + 0x8000) >> 16).astype(np.uint32)


@pytest.mark.parametrize(
    ("function", "rounded"),
    [("pack", nearest_even), ("pack_results", nearest_even), ("pack_halves_away", nearest_away)],
)
def test_two_numbers_are_packed_as_they_are_rounded_and_nan_stays_nan_if_arithmetic_can_make_it(function, rounded):
    """Arithmetic on bf16 numbers makes NaNs whose low half is 0."""
    x, y = HALVES.view(np.float32), np.zeros(HALVES.shape, np.uint32)
    body = f"""int i = block_x() * 64 + thread_id(), last = 6 * 65536 - 1;
      for (int k = 6 * i; k < 6 * i + 6; k++) y[k] = {function}(x[k], x[last - k]);"""
    launch(body, x, y, grid=(1024,), parameters="const float* x, uint32* y")
    low, high = y & 0xFFFF, (y >> 16)[::-1, ::-1]
    assert np.array_equal(low, high)
    numbers = ~np.isnan(x)
    assert np.array_equal(low[numbers], rounded(HALVES[numbers]))
    made = np.isnan(x) & (HALVES & 0xFFFF == 0)
    assert made.sum() == 2 * 127
    assert np.isnan(value(low[made].astype(np.uint16))).all()


def test_the_hash_behind_dropout_is_the_references():
    x = np.arange(64, dtype=np.uint32) * 77777777
    y = np.zeros_like(x)
    launch("y[thread_id()] = mix(x[thread_id()]);", x, y, parameters="const uint32* x, uint32* y")
    assert np.array_equal(y, mix(x.copy()))


def test_dropouts_factors_are_the_references():
    key, rate, site = np.array([2**32 - 5, 77], np.uint32), 0.37, 13
    y = np.zeros((100, 64), np.float32)
    body = """Dropout dropout(key, site, threshold, scale);
      int row = block_x(), column = thread_id();
      y[row * 64 + column] = dropout.factor(dropout.row_hash(row), column);"""
    launch(body, key, np.uint32(site), np.uint32(int(rate * 2**32)), np.float32(1 / (1 - rate)), y, grid=(100,),
           parameters="const uint32* key, uint32 site, uint32 threshold, float scale, float* y")  # fmt: skip
    mask = Mask(Dropout(rate, key, site), 64)
    assert np.array_equal(y, mask.draw(np.arange(100, dtype=np.uint32), 64, Scratch(), np.dtype(np.float32)))


OVERRUNS = {
    "an array of the host": ("y[64 + thread_id()] = 1;", "heap-buffer-overflow"),
    "a local array after a barrier": ("float v[4] = {}, *volatile p = v; sync(); p[n] = 1;", "stack-buffer-overflow"),
    "the index of a local array": ("float v[4] = {}; v[n] = 1; y[0] = v[0];", "index 4 out of bounds"),
}


@pytest.mark.parametrize("overrun", OVERRUNS)
def test_sanitizers_see_a_kernel_that_overruns_an_array(overrun):
    body, report = OVERRUNS[overrun]
    if not Path(compiler()).name.startswith("g++"):
        pytest.skip("g++ brings the sanitizers' libraries, other compilers have them elsewhere")
    library = subprocess.run([compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not os.path.isabs(library.stdout.strip()):
        pytest.skip("no AddressSanitizer: install libasan")
    script = f"""if True:
        import numpy as np
        from tests.ops.test_executor import launch
        launch({body!r}, np.zeros(64, np.float32), np.int32(4), parameters="float* y, int n")"""
    environment = {"HIPGPT_SANITIZE": "1", "LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run([sys.executable, "-c", script], env={**os.environ, **environment}, cwd=ROOT,
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert result.returncode != 0
    assert re.search(report, result.stderr), result.stderr
    assert "kernel.hip:1" in result.stderr
