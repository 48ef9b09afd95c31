"""Matrix products through the vendors' interfaces.

A library on the CPU stands in for cuBLASLt and hipBLASLt. It computes the product that its descriptors describe.
"""

import ctypes
import inspect
import re
import shutil
import subprocess

import numpy as np
import pytest

from gpt.ops.gpu import blas as blas_module
from gpt.ops.gpu import products as gpu_products
from gpt.ops.gpu.blas import FUNCTIONS, Blas, BlasError, BlasMissingError, Epilogue, Sum, load_library
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.interface import Activation, Affine
from tests.support.blas import aligned, build


@pytest.fixture(params=["cuda", "rocm"])
def kind(request):
    return request.param


@pytest.fixture
def library(kind, tmp_path):
    return build(kind, tmp_path / f"{kind}.so")


@pytest.fixture
def blas(kind, library):
    return Blas(kind, 0, 0, library)


def to_bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def values(x):
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def ones(*shape):
    return aligned(np.ones(shape, np.float32))


def stored(rng, shape, low_precision, transposed=False):
    x = rng.standard_normal(shape[::-1] if transposed else shape).astype(np.float32)
    x = aligned(to_bf16(x) if low_precision else x)
    return x.T if transposed else x


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_derivative(x, h=1e-6):
    return (gelu(x + h) - gelu(x - h)) / (2 * h)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 7), (8, 16, 24)])
@pytest.mark.parametrize("added", [None, "out", "another"])
def test_products(blas, low, transposed, m, k, n, added):
    rng = np.random.default_rng(1)
    a, b = stored(rng, (m, k), low, transposed[0]), stored(rng, (k, n), low, transposed[1])
    out = stored(rng, (m, n), False)
    addend = {None: None, "out": out, "another": stored(rng, (m, n), False)}[added]
    expected = 0.5 * values(a) @ values(b) + (0 if addend is None else 3 * addend)
    assert blas.product(a, b, out, stream=0, into=Sum(0.5, 3, addend))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False)])
def test_products_of_stacks(blas, low, transposed):
    """Each stack has three matrices with gaps between them. The gaps of `out` and of the addend differ."""
    rng = np.random.default_rng(4)

    def stack(rows, columns, turned=False, gap=0):
        shape = (columns, rows) if turned else (rows, columns)
        whole = stored(rng, (3, 128 * (1 + gap)), low)
        view = whole[:, : rows * columns].reshape(3, *shape)
        return view.swapaxes(1, 2) if turned else view

    a, b = stack(6, 5, transposed[0]), stack(5, 8, transposed[1], gap=1)
    addend, out = stack(6, 8, gap=2), stack(6, 8)
    expected = 0.5 * values(a).astype(np.float64) @ values(b) + 2 * values(addend)
    assert blas.product(a, b, out, stream=0, into=Sum(0.5, 2, addend))
    close = {"rtol": 2**-7, "atol": 2**-7} if low else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(values(out), expected, **close)


def test_stacks_whose_matrices_are_not_aligned_are_declined(blas):
    a = ones(3, 4, 4)  # 64 bytes apart
    assert not blas.product(a, a, ones(3, 4, 4), stream=0)


@pytest.mark.parametrize("low", [False, True])
def test_epilogues(blas, low):
    """The result is rounded once, by 2^-8 in bf16.

    If the activation's input is stored too, it is rounded once more.
    """
    rng = np.random.default_rng(2)
    a, b, bias = (stored(rng, shape, low) for shape in ((6, 5), (5, 8), (8,)))
    before, out = stored(rng, (6, 8), low), stored(rng, (6, 8), low)
    close = {"rtol": 2**-7, "atol": 2**-7} if low else {"rtol": 1e-5, "atol": 1e-5}
    product = values(a).astype(np.float64) @ values(b)
    assert blas.product(a, b, out, stream=0, epilogue=Epilogue("bias", bias))
    np.testing.assert_allclose(values(out), product + values(bias), **close)
    assert blas.product(a, b, out, stream=0, epilogue=Epilogue("gelu", bias, before))
    np.testing.assert_allclose(values(before), product + values(bias), **close)
    np.testing.assert_allclose(values(out), gelu(product + values(bias)), **close)
    assert blas.product(a, b, out, stream=0, epilogue=Epilogue("dgelu", pre_activation=before))
    np.testing.assert_allclose(values(out), product * gelu_derivative(values(before).astype(np.float64)), **close)


def test_a_plan_is_made_once(blas, library):
    rng = np.random.default_rng(3)
    a, b, out = (stored(rng, (4, 4), False) for _ in range(3))
    for _ in range(3):
        assert blas.product(a, b, out, stream=0)
    assert ctypes.c_int.in_dll(library, "heuristics").value == 1


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_asked_for_if_the_vendor_has_it(kind, blas, library, tf32):
    a = ones(2, 2)
    blas.product(a, a, ones(2, 2), stream=0, tf32=tf32)
    asked = ctypes.c_int.in_dll(library, "last_compute").value  # 77 is CUBLAS_COMPUTE_32F_FAST_TF32
    assert asked == {"cuda": {False: 68, True: 77}, "rocm": {False: 2, True: 2}}[kind][tf32]


def test_a_product_that_the_library_does_not_know_is_declined_and_remembered(blas, library):
    ctypes.c_int.in_dll(library, "refuse").value = -1
    a, out = ones(2, 2), aligned(np.full((2, 2), 7, np.float32))
    for _ in range(2):
        assert not blas.product(a, a, out, stream=0)
    assert (out == 7).all()
    assert ctypes.c_int.in_dll(library, "heuristics").value == 1


@pytest.mark.parametrize("which", ["a", "b", "out", "bias"])
def test_an_array_at_an_unaligned_address_is_declined(blas, library, which):
    """A plan holds only for arrays that are aligned as it was made for.

    The last row of a prompt, for example, may begin at an unaligned address.
    """
    arrays = {name: ones(2, 2) for name in ("a", "b", "out")} | {"bias": ones(2)}
    memory = ones(5)
    arrays[which] = memory[1 : 1 + arrays[which].size].reshape(arrays[which].shape)
    assert not blas.product(
        arrays["a"], arrays["b"], arrays["out"], stream=0, epilogue=Epilogue("bias", arrays["bias"])
    )
    assert ctypes.c_int.in_dll(library, "heuristics").value == 0


def test_a_failure_is_an_error(blas, library):
    ctypes.c_int.in_dll(library, "failure").value = 14
    a = ones(2, 2)
    with pytest.raises(BlasError, match="failed with status 14"):
        blas.product(a, a, ones(2, 2), stream=0)


def test_a_product_that_turns_out_not_to_be_supported_is_declined(kind, blas, library):
    ctypes.c_int.in_dll(library, "failure").value = {"cuda": 15, "rocm": 7}[kind]
    a = ones(2, 2)
    assert not blas.product(a, a, ones(2, 2), stream=0)


def test_a_library_that_fails_is_given_up_with_a_warning(blas, library):
    ctypes.c_int.in_dll(library, "failure").value = 14
    device = NotingDevice("sm_90", 32, True)
    device.blas = blas
    x = ones(8, 8)
    with pytest.warns(UserWarning, match="failed with status 14; from here on"):
        GpuOps(device, "fp32").linear(x, Affine(x, None), ones(8, 8))
    assert device.blas is None


def test_a_missing_library_names_its_package(kind, monkeypatch):
    def refuse(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(BlasMissingError, match={"cuda": "nvidia-cublas", "rocm": "hipblaslt"}[kind]):
        load_library(kind)


@pytest.fixture
def compiled(tmp_path):
    """Compile a library that stands for one whose file has this name: compiled(name, source, *options)."""
    if not shutil.which("gcc"):
        pytest.skip("no C compiler")

    def compiled(name, source="", *options):
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / name), *options]
        subprocess.run(command, input=source, text=True, check=True)
        return str(tmp_path / name)

    return compiled


def test_a_library_that_lacks_another_one_names_that(kind, compiled, monkeypatch, tmp_path):
    compiled("libother.so.3")
    whole = compiled("whole.so.1", "", "-Wl,--no-as-needed", f"-L{tmp_path}", "-l:libother.so.3")
    (tmp_path / "libother.so.3").unlink()
    monkeypatch.setattr("gpt.ops.gpu.blas._candidates", lambda vendor: [str(tmp_path / "absent.so.2"), whole])
    with pytest.raises(BlasMissingError, match=r"libother\.so\.3: cannot open shared object file") as error:
        load_library(kind)
    assert "install" in str(error.value)
    assert "is not there" not in str(error.value)


def test_the_list_of_functions_is_that_of_the_calls():
    source = inspect.getsource(blas_module)
    called = set(re.findall(r'_call\(\s*"(\w+)"', source)) | set(re.findall(r"vendor\.prefix\}(\w+)\"", source))
    assert called == set(FUNCTIONS)


@pytest.mark.parametrize("missing", FUNCTIONS)
def test_a_library_that_lacks_a_function_is_too_old(kind, compiled, missing):
    prefix = {"cuda": "cublasLt", "rocm": "hipblasLt"}[kind]
    source = "".join(f"int {prefix}{name}(void) {{ return 0; }}\n" for name in FUNCTIONS if name != missing)
    library = ctypes.CDLL(compiled("old.so", source))
    with pytest.raises(BlasMissingError, match=f"lacks {prefix}{missing}, so it is too old: install a newer "):
        Blas(kind, 0, 0, library)


@pytest.fixture(params=["fp32", "tf32", "bf16"])
def asking(request, blas):
    """Operations whose products `blas` computes, and a list that gets the names of the kernels they launch."""
    asked = []

    class Device(NotingDevice):
        def kernel(self, file, name, defines, shared_bytes=0):
            return lambda grid, block, arguments: asked.append(name)

    device = Device("sm_90", 32, True)
    device.blas = blas
    return GpuOps(device, request.param), asked


@pytest.mark.parametrize("large", [False, True])  # whether `out` is too large for the GPU's cache
@pytest.mark.parametrize("refused", [0, 4, 164, 192, -1])
def test_a_linear_layer_is_the_same_whichever_epilogues_the_library_refuses(
    asking, library, refused, large, monkeypatch
):
    """Checks that the right kernels step in for a refused epilogue, and no others.

    `refused` is the number of the epilogue that the library does not know: 4 adds a bias, 164 adds a bias, stores the
    sum and applies GELU, and 192 multiplies by GELU's derivative. With 0 it knows all of them, and with -1 it knows no
    product at all. Other tests check the results of the kernels.
    """
    monkeypatch.setattr(gpu_products, "CACHE_BYTES", 0 if large else 2**25)
    ctypes.c_int.in_dll(library, "refuse").value = refused
    (ops, asked), rng = asking, np.random.default_rng(0)
    low = ops.low_precision
    x, w, bias, out, pre_activation = (stored(rng, s, low) for s in ((8, 8), (8, 16), (16,), (8, 16), (8, 16)))
    ops.linear(x, Affine(w, bias), out, Activation("gelu", pre_activation))
    fused = low and large and refused in (0, 4, 192)
    expected = ["matmul"] if refused == -1 else [] if fused else ["activation"]
    if refused == 4 and not fused:
        expected = ["add_bias", "activation"]
    assert asked == expected
    if refused != -1 and "add_bias" not in asked:
        np.testing.assert_allclose(values(pre_activation), values(x) @ values(w) + values(bias), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("refused", [0, 192, -1])
def test_the_backward_pass_through_an_activation_takes_its_column_sums(asking, library, refused, large, monkeypatch):
    monkeypatch.setattr(gpu_products, "CACHE_BYTES", 0 if large else 2**25)
    ctypes.c_int.in_dll(library, "refuse").value = refused
    (ops, asked), rng = asking, np.random.default_rng(0)
    dout, pre_activation, w = (stored(rng, s, ops.low_precision) for s in ((8, 16), (8, 8), (8, 16)))
    through = Activation("gelu", pre_activation, np.zeros((1, 8), np.float32))
    ops.linear_backward(dout, w, aligned(pre_activation.copy()), activation=through)
    fused = ops.low_precision and large and refused == 0
    products = ["matmul"] if refused == -1 else []
    assert asked == [*products, "column_sums" if fused else "activation_backward"]
