"""The operations with numba: when they are taken, and that freshly compiled code gives the same bits as cached code.

tests/ops/kernels/ compares each of them with NumPy's, and tests/training/test_model_on_devices.py all of them together.
"""

import json
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpt import ops
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.interface import Activation, Affine
from gpt.system import limits

pytest.importorskip("numba")
pytest.importorskip("scipy")

from numba import njit, prange

from gpt.ops.cpu import numba_loops as loops
from gpt.ops.cpu.numba_cache import ForgivingCache
from gpt.ops.cpu.numba_operations import NumbaOps
from tests.support import ROOT

TRAIN = ("--dim", 64, "--heads", 2, "--ff", 256, "--layers", 2, "--seq", 16, "--batch", 3, "--vocab-size", 100)


# ---- when they are taken ---------------------------------------------------------------------------------------------


def test_training_on_a_cpu_takes_numba_and_says_so():
    chosen = ops.select("cpu", training=True)
    assert isinstance(chosen, NumbaOps)
    assert chosen.description.endswith(", numba")


def test_generating_does_not_wait_for_numba_to_start():
    assert type(ops.select("cpu")) is CpuOps


def test_numpy_trains_if_numba_is_not_installed(monkeypatch):
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: None)
    chosen = ops.select("cpu", training=True)
    assert type(chosen) is CpuOps
    assert not list(chosen.notes)


@pytest.fixture
def anew(monkeypatch):
    """Makes the next import of hipgpt's numba modules a first one."""
    for module in ("gpt.ops.cpu.numba_operations", "gpt.ops.cpu.numba_loops"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(ops.cpu, "numba_loops")


def note_of_numpy():
    """The note with which NumPy trains in place of numba."""
    chosen = ops.select("cpu", training=True)
    assert type(chosen) is CpuOps
    (note,) = chosen.notes
    return note


@pytest.mark.parametrize("missing", ["scipy.linalg.cython_blas", "numba.np.ufunc.omppool"])
def test_numpy_trains_if_numba_lacks_something_and_a_note_names_it(anew, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    note = note_of_numpy()
    assert note.startswith("Note: numba is not used, ")
    assert missing in note


def test_numpy_trains_if_compiled_code_cannot_be_cached_and_a_note_says_so(anew, monkeypatch):
    """numba caches compiled code beside the source or in the user's cache folder.

    If it can write to neither, it refuses to compile.
    """

    def refuse(**options):
        raise RuntimeError("cannot cache function 'share': no locator available")

    monkeypatch.setattr("numba.njit", refuse)
    assert note_of_numpy().endswith("cannot cache function 'share': no locator available")


def with_cache(monkeypatch, folder):
    """The notes of NumbaOps, with numba's cache in `folder`."""
    stats = SimpleNamespace(cache_path=str(folder))
    monkeypatch.setattr(loops.linear, "dispatcher", SimpleNamespace(stats=stats))
    return NumbaOps().notes


def test_cache_files_that_a_power_cut_damaged_are_compiled_again(monkeypatch, tmp_path):
    whole = pickle.dumps([1, 2, 3])
    contents = {"linear-1.py311.nbi": b"", "share-1.py311.1.nbc": whole, "loop-1.py311.1.nbc": whole[:-3] + b"\0\0\0"}
    for name, content in {**contents, "exp-1.py311.nbi": whole[:-1]}.items():
        (tmp_path / f"numba_loops.{name}").write_bytes(content)
    (note,) = with_cache(monkeypatch, tmp_path)
    assert note == f"Note: 3 damaged files of numba's cache {tmp_path} are compiled anew"
    assert [file.name for file in tmp_path.iterdir()] == ["numba_loops.share-1.py311.1.nbc"]
    assert not with_cache(monkeypatch, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    note = with_cache(monkeypatch, tmp_path / "file")[-1]
    assert f"numba's cache {tmp_path / 'file'} cannot be written (File exists)" in note
    assert "NUMBA_CACHE_DIR" in note


def test_code_that_cannot_be_loaded_is_compiled_and_code_that_cannot_be_cached_is_used(monkeypatch):
    def fail(*_):
        raise pickle.UnpicklingError("pickle data was truncated")

    cache = ForgivingCache(type("Broken", (), {"load_overload": fail, "save_overload": fail, "flush": fail})())
    assert cache.load_overload(None, None) is None
    cache.save_overload(None, None)
    compiled = [getattr(each, "dispatcher", each) for each in vars(loops).values()]
    forgiving = [isinstance(each._cache, ForgivingCache) for each in compiled if hasattr(each, "py_func")]
    assert all(forgiving)
    assert len(forgiving) > 20


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not bind threads")
@pytest.mark.parametrize("setting", ["OMP_PROC_BIND=true", "OMP_PLACES=cores", "GOMP_CPU_AFFINITY=0"])
def test_threads_are_counted_before_openmp_binds_them(setting):
    code = "import os; from gpt.ops.cpu.numba_operations import NumbaOps"
    code += "; print(NumbaOps().threads.count, len(os.sched_getaffinity(0)))"
    environment = {**os.environ, **dict([setting.split("=")])}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert out.split() == [str(limits.cpus()), str(len(os.sched_getaffinity(0)))]


def test_numba_with_its_compiler_switched_off_is_not_used(hipgpt):
    environment = {**hipgpt.environment, "NUMBA_DISABLE_JIT": "1"}
    text = ("--data-path", ROOT / "data/data.txt")
    out = hipgpt("train", *text, *TRAIN, "--steps", 1, "--device", "cpu", environment=environment).stdout
    assert "Note: numba is not used, which makes steps slower: NUMBA_DISABLE_JIT is set" in out


def test_no_blas_has_threads_of_its_own():
    """Checks NumPy's and SciPy's BLAS, in a process that has imported nothing before."""
    code = "import json, gpt.ops; gpt.ops.select('cpu', training=True)"
    code += "; from threadpoolctl import threadpool_info; print(json.dumps(threadpool_info()))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    libraries = [library for library in json.loads(printed) if library["user_api"] == "blas"]
    assert len({library["filepath"] for library in libraries}) >= 2
    assert {library["num_threads"] for library in libraries} == {1}


# ---- the same bits ---------------------------------------------------------------------------------------------------


def test_freshly_compiled_code_computes_the_bits_of_cached_code(hipgpt, tmp_path):
    environment = {**hipgpt.environment, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    weights = []
    for run in ("compiles", "loads"):
        command = ("train", "--run-name", run, "--data-path", ROOT / "data/data.txt", "--steps", 30, "--device", "cpu")
        out = hipgpt(*command, *TRAIN, environment=environment).stdout
        assert ("Note: numba compiles" in out) == (run == "compiles")
        weights.append((tmp_path / f"checkpoints/{run}/latest_checkpoint.safetensors").read_bytes())
    assert weights[0] == weights[1]


# ---- the parts of loops ----------------------------------------------------------------------------------------------


@loops.parallel(loops.VECTOR, loops.STRIDED)
def add_to_rows(x, out):
    for row in prange(len(out)):
        loops.add(x, out[row])


def test_a_parallel_function_is_compiled_once_and_takes_no_other_types():
    x, out = np.ones(3, np.float32), np.zeros((2, 3), np.float32)
    for _ in ("compiled or loaded", "called again"):
        with pytest.raises(TypeError):
            add_to_rows(np.ones(6, np.float32)[::2], out)
        with pytest.raises(TypeError):
            add_to_rows(np.ones(3), out)
    for form in (out, out.T[:2, :2].T, np.asfortranarray(out)):
        add_to_rows(x[: form.shape[1]], form)
        assert form.all()
    assert len(add_to_rows.dispatcher.signatures) == 1


@njit
def each_exp(x, out):
    for j in range(x.size):
        out[j] = loops.exp(x[j])


def test_exp_is_as_exact_as_it_says():
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    out, expected = np.empty_like(x), np.exp(x.astype(np.float64))
    each_exp(x, out)
    assert np.abs(out / expected - 1).max() < 2**-22


def test_exp_ends_in_zero_infinity_and_nan():
    x = np.array([-88, -1e30, -np.inf, 0, -0.0, 89, 1e30, np.inf, np.nan], np.float32)
    out = np.empty_like(x)
    each_exp(x, out)
    np.testing.assert_array_equal(out, np.array([0, 0, 0, 1, 1, *[np.inf] * 3, np.nan], np.float32))


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_the_largest_of_numbers_of_all_signs_and_of_infinities(n):
    rng = np.random.default_rng(n)
    for shift in (0, 100, -100):
        x = (rng.standard_normal(n) * 10 + shift).astype(np.float32)
        assert loops.largest(x) == x.max()
    x[n // 2] = np.inf
    assert loops.largest(x) == np.inf
    x[:] = -np.inf
    assert loops.largest(x) == -np.inf


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (1, 1, 1), (1, 5, 3), (4, 1, 3), (5, 3, 1), (7, 16, 9)])
@pytest.mark.parametrize("accumulate", [0, 1])
def test_products_of_rows_columns_and_parts_of_larger_matrices(m, k, n, accumulate):
    """Elements are whole numbers, so that every sum is exact."""
    rng = np.random.default_rng(0)

    def whole(rows, columns):
        return rng.integers(-9, 9, (rows, columns)).astype(np.float32)

    def forms(rows, columns):
        yield whole(rows, columns)
        yield whole(columns, rows).T
        yield whole(rows + 2, columns + 3)[1 : rows + 1, 2 : columns + 2]
        yield whole(columns + 2, rows + 3)[1 : columns + 1, 2 : rows + 2].T

    for a in forms(m, k):
        for b in forms(k, n):
            around = whole(m + 2, n + 3)
            before, out = around.copy(), around[1 : m + 1, 2 : n + 2]
            expected = around.copy()
            expected[1 : m + 1, 2 : n + 2] = a @ b + (before[1 : m + 1, 2 : n + 2] if accumulate else 0)
            loops.matmul(a, b, out, accumulate)
            np.testing.assert_array_equal(around, expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 5, 300, 2 * loops.PRODUCT_ROWS + 7])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_linear_layer_and_its_gradients_however_they_are_shared_out(rows, threads, activation):
    """Elements are whole numbers, so that every sum is exact."""
    rng = np.random.default_rng(0)
    x, pre_activation, dout, weight, bias, dweight = (
        rng.integers(-9, 9, shape).astype(np.float32) for shape in ((rows, 7), (rows, 7), (rows, 5), (7, 5), 5, (7, 5))
    )

    def results(ops):
        out, dx, added = np.full_like(dout, np.nan), np.full_like(x, np.nan), dweight.copy()
        dbias, dx_sums = (np.full((ops.partial_sums(rows), n), np.nan, np.float32) for n in (5, 7))
        after = Activation(activation, np.full_like(dout, np.nan)) if activation else None
        through = Activation(activation, pre_activation, dx_sums) if activation else None
        ops.linear(x, Affine(weight, bias), out, after)
        ops.linear_backward(dout, weight, dx, dbias, through)
        ops.weight_gradient(x, dout, added)
        written = np.full_like(dweight, np.nan)
        ops.weight_gradient(x, dout, written, fresh=True)
        return out, dx, added, written, dbias.sum(0), dx_sums.sum(0) if activation else None

    for ours, theirs in zip(results(NumbaOps(threads)), results(CpuOps(threads)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_no_activation_hides_a_run_that_diverged(activation):
    x, weight, bias = np.full((2, 1), np.nan, np.float32), np.ones((1, 3), np.float32), np.zeros(3, np.float32)
    out, pre_activation = np.zeros((2, 2, 3), np.float32)
    NumbaOps(threads=1).linear(x, Affine(weight, bias), out, Activation(activation, pre_activation))
    assert np.isnan(out).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("row", [10, 70, 300])
def test_attention_keeps_nan_in_the_row_that_has_it_and_nowhere_else(row, sign):
    """Both signs occur: on x86 infinity minus infinity is a negative NaN."""
    seq, d = 320, 8
    qkv = np.random.default_rng(0).standard_normal((seq, 3 * d)).astype(np.float32)
    qkv[row, 0] = np.copysign(np.float32(np.nan), sign)  # a query
    out, lse = np.zeros((seq, d), np.float32), np.zeros((1, 1, seq), np.float32)
    NumbaOps(threads=1).attention(qkv, out, lse)
    assert np.isnan(out).any(axis=1).nonzero()[0].tolist() == [row]
    assert np.isnan(lse[0, 0]).nonzero()[0].tolist() == [row]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_logit_that_is_nan_of_either_sign_makes_the_loss_nan(sign):
    logits, losses, hits = np.zeros((1, 50), np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)
    logits[0, 20] = np.copysign(np.float32(np.nan), sign)
    NumbaOps(threads=1).softmax_cross_entropy(logits, np.array([1], np.int32), losses, hits, 50)
    assert np.isnan(losses).all()
