"""The vendors' matrix products, cuBLASLt and hipBLASLt, behind one call.

The two libraries have the same functions under different prefixes and other numbers for the same things; `_CUDA` and
`_ROCM` hold those. They are called through ctypes: hipBLASLt has no maintained Python binding, CuPy's own calls refuse
to be captured in a graph, and a second binding for cuBLASLt alone would be a second way to do one thing. A product is
planned once (descriptors, and the library's own first choice of algorithm) and then costs one foreign call.

Both libraries think in columns. A row-major matrix is a column-major one transposed, so out = a b is asked for as
outᵀ = bᵀ aᵀ, operands swapped.
"""

import ctypes
import glob
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpt.errors import first_line

FLOAT32, BF16 = 0, 14  # CUDA_R_32F, CUDA_R_16BF and HIP_R_32F, HIP_R_16BF are the same
MAX_WORKSPACE_BYTES = 1  # the preference's number, in both
HEURISTIC_BYTES = 512  # more than either library's result, which begins with the algorithm
ALIGNMENT = 256  # bytes: cuBLASLt takes it for granted unless told otherwise
FUNCTIONS = (  # all that are called, without the prefix
    "Create", "Matmul", "MatmulAlgoGetHeuristic", "MatmulDescCreate", "MatmulDescSetAttribute", "MatrixLayoutCreate",
    "MatrixLayoutSetAttribute", "MatmulPreferenceCreate", "MatmulPreferenceDestroy", "MatmulPreferenceSetAttribute",
)  # fmt: skip
EPILOGUES = {"none": 1, "bias": 4, "gelu": 164, "dgelu": 192}  # gelu: GELU_AUX_BIAS; the same in both


class Epilogue(NamedTuple):
    """A step that the library applies to a product before it stores it; `Blas.product` defines each."""

    name: str  # a key of EPILOGUES
    bias: Any = None  # [N]
    pre_activation: Any = None  # [M, N]


NO_EPILOGUE = Epilogue("none")


class Sum(NamedTuple):
    """alpha · product + beta · addend; without an addend alpha · product."""

    alpha: float = 1
    beta: float = 1
    addend: Any = None


PLAIN = Sum()


class _Vendor(NamedTuple):
    """The names and numbers of one library: those of cublasLt.h, or of hipblas-common.h and hipblaslt.h."""

    prefix: str
    libraries: tuple[str, ...]
    package: str
    float32: int  # the compute types
    tf32: int
    normal: int  # the operations
    transposed: int
    trans_a: int  # the attributes of a product
    trans_b: int
    epilogue: int
    bias_pointer: int
    bias_type: int
    aux_pointer: int
    aux_ld: int
    batch_count: int  # the attributes of a matrix layout
    batch_stride: int
    not_supported: int  # the status


_CUDA = _Vendor(
    prefix="cublasLt", libraries=("libcublasLt.so.13", "libcublasLt.so.12"), package="nvidia-cublas, or CUDA's cuBLAS",
    float32=68, tf32=77, normal=0, transposed=1, trans_a=3, trans_b=4, epilogue=7, bias_pointer=8, bias_type=26,
    aux_pointer=11, aux_ld=12, batch_count=5, batch_stride=6, not_supported=15,
)  # fmt: skip
_ROCM = _Vendor(
    prefix="hipblasLt", libraries=("libhipblaslt.so.1", "libhipblaslt.so.0"), package="ROCm's hipblaslt",
    float32=2, tf32=2, normal=111, transposed=112, trans_a=0, trans_b=1, epilogue=2, bias_pointer=3, bias_type=4,
    aux_pointer=10, aux_ld=11, batch_count=0, batch_stride=1, not_supported=7,
)  # fmt: skip
_VENDORS = {"cuda": _CUDA, "rocm": _ROCM}


class BlasMissingError(OSError):
    """The library is missing, does not load or is too old; the message names the package to install."""


class BlasError(RuntimeError):
    """The library failed unexpectedly."""


class Blas:
    """A loaded `library` of `kind` "cuda" or "rocm", with `workspace_bytes` of device memory at `workspace` to work in.

    Raises BlasMissingError if it is too old, and BlasError if it does not start.
    """

    def __init__(self, kind: str, workspace: int, workspace_bytes: int, library: ctypes.CDLL) -> None:
        self._vendor, self._library = _VENDORS[kind], library
        for name in FUNCTIONS:
            if not hasattr(self._library, self._vendor.prefix + name):
                raise BlasMissingError(
                    f"the library for matrix products lacks {self._vendor.prefix}{name}, so it is too old: "
                    f"install a newer version of {self._vendor.package}"
                )
        self._workspace, self._workspace_bytes = ctypes.c_void_p(workspace), ctypes.c_size_t(workspace_bytes)
        self._handle = ctypes.c_void_p()
        self._call("Create", ctypes.byref(self._handle))
        self._matmul = getattr(self._library, f"{self._vendor.prefix}Matmul")
        self._plans: dict[_Problem, _Plan | None] = {}

    def product(
        self,
        a: Any,
        b: Any,
        out: Any,
        *,
        stream: int,
        epilogue: Epilogue = NO_EPILOGUE,
        into: Sum = PLAIN,
        tf32: bool = False,
    ) -> bool:
        """out [M, N] = alpha · a [M, K] @ b [K, N], and + beta · addend [M, N] if there is one, on `stream`.

        `into` has alpha, beta and addend. Returns False if the library cannot compute this; nothing has happened then.
        a and b are both bf16 (dtype uint16) or both float32, C-contiguous or transposed views of C-contiguous arrays;
        out and addend (which may be out) are C-contiguous and of one type, either. Sums are float32; `tf32` lets
        float32 operands be rounded to 10 bits of mantissa. All may be stacks [n, …] of such matrices, evenly apart.
        Arrays that do not begin at multiples of ALIGNMENT bytes are declined, and so are stacks whose matrices do not.
        Epilogues, with bias [N] and pre_activation [M, N] of out's type:
        - bias: out = a @ b + bias;
        - gelu: pre_activation = a @ b + bias, out = gelu(pre_activation), by the tanh approximation;
        - dgelu: out = (a @ b) · gelu'(pre_activation).
        Raises BlasError.
        """
        addend, beta = (out, 0.0) if into.addend is None else (into.addend, into.beta)
        strides = _stack_stride(a), _stack_stride(b), _stack_stride(addend), _stack_stride(out)
        if any(stride % ALIGNMENT for stride in strides):
            return False
        problem = _Problem(
            a.shape, b.shape[-1], is_transposed(a), is_transposed(b), a.dtype.itemsize, out.dtype.itemsize, strides,
            epilogue.name, into.alpha, beta, tf32,
        )  # fmt: skip
        extras = (self._vendor.bias_pointer, epilogue.bias), (self._vendor.aux_pointer, epilogue.pre_activation)
        pointers = {attribute: _address(array) for attribute, array in extras if array is not None}
        if any(address % ALIGNMENT for address in (*map(_address, (a, b, addend, out)), *pointers.values())):
            return False
        if problem in self._plans:
            plan = self._plans[problem]
        else:
            plan = self._plans[problem] = self._plan_or_none(problem, pointers)
        if plan is None:
            return False
        self._point(plan.product, pointers)
        status = self._matmul(
            self._handle, plan.product, plan.alpha, ctypes.c_void_p(_address(b)), plan.left,
            ctypes.c_void_p(_address(a)), plan.right, plan.beta, ctypes.c_void_p(_address(addend)), plan.addend,
            ctypes.c_void_p(_address(out)), plan.out, plan.algorithm, self._workspace, self._workspace_bytes,
            ctypes.c_void_p(stream),
        )  # fmt: skip
        if status == self._vendor.not_supported:
            self._plans[problem] = None
            return False
        self._check("Matmul", status)
        return True

    def _plan_or_none(self, problem: "_Problem", pointers: dict[int, int]) -> "_Plan | None":
        """A plan for such products, or None if the library knows no algorithm, or does not even know the problem."""
        try:
            return self._plan(problem, pointers)
        except BlasError:
            return None

    def _plan(self, problem: "_Problem", pointers: dict[int, int]) -> "_Plan | None":
        vendor, n, epilogue = self._vendor, problem.n, problem.epilogue
        *stack, m, k = problem.a_shape
        a_transposed, b_transposed = problem.a_transposed, problem.b_transposed
        itemsize, out_itemsize = problem.itemsize, problem.out_itemsize
        kind, out_kind = (BF16 if size == 2 else FLOAT32 for size in (itemsize, out_itemsize))
        product = ctypes.c_void_p()
        compute = vendor.tf32 if problem.tf32 and kind == FLOAT32 else vendor.float32
        self._call("MatmulDescCreate", ctypes.byref(product), ctypes.c_int(compute), ctypes.c_int(FLOAT32))
        for attribute, transposed in ((vendor.trans_a, b_transposed), (vendor.trans_b, a_transposed)):
            self._set(product, attribute, ctypes.c_int32(vendor.transposed if transposed else vendor.normal))
        self._set(product, vendor.epilogue, ctypes.c_int32(EPILOGUES[epilogue]))
        if epilogue in ("bias", "gelu"):
            self._set(product, vendor.bias_type, ctypes.c_int32(out_kind))
        if epilogue in ("gelu", "dgelu"):
            self._set(product, vendor.aux_ld, ctypes.c_int64(n))
        self._point(product, pointers)  # before the heuristic query, which looks at pointer alignment and at NULL
        count, (right_apart, left_apart, addend_apart, out_apart) = (stack or [1])[0], problem.strides
        left = self._layout(kind, *((k, n) if b_transposed else (n, k)), count, left_apart // itemsize)
        right = self._layout(kind, *((m, k) if a_transposed else (k, m)), count, right_apart // itemsize)
        addend = self._layout(out_kind, n, m, count, addend_apart // out_itemsize)
        out = self._layout(out_kind, n, m, count, out_apart // out_itemsize)
        algorithm = self._algorithm(product, left, right, addend, out)
        if algorithm is None:
            return None
        factors = (ctypes.byref(ctypes.c_float(factor)) for factor in (problem.alpha, problem.beta))
        return _Plan(product, left, right, addend, out, algorithm, *factors)

    def _layout(self, kind: int, rows: int, columns: int, count: int, apart: int) -> ctypes.c_void_p:
        """A column-major matrix without gaps, or `count` of them, `apart` elements from one to the next."""
        layout = ctypes.c_void_p()
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
        self._call("MatrixLayoutCreate", ctypes.byref(layout), ctypes.c_int(kind), *sizes)
        if count > 1:
            attributes = self._vendor.batch_count, self._vendor.batch_stride
            for attribute, value in zip(attributes, (ctypes.c_int32(count), ctypes.c_int64(apart)), strict=True):
                size = ctypes.c_size_t(ctypes.sizeof(value))
                self._call("MatrixLayoutSetAttribute", layout, ctypes.c_int(attribute), ctypes.byref(value), size)
        return layout

    def _algorithm(self, product: Any, left: Any, right: Any, addend: Any, out: Any) -> Any:
        """The library's first choice within the workspace, or None if it has no choice."""
        preference, found = ctypes.c_void_p(), ctypes.c_int()
        self._call("MatmulPreferenceCreate", ctypes.byref(preference))
        size = self._workspace_bytes
        self._call(
            "MatmulPreferenceSetAttribute", preference, ctypes.c_int(MAX_WORKSPACE_BYTES), ctypes.byref(size),
            ctypes.c_size_t(ctypes.sizeof(size)),
        )  # fmt: skip
        result = ctypes.create_string_buffer(HEURISTIC_BYTES)
        status = getattr(self._library, f"{self._vendor.prefix}MatmulAlgoGetHeuristic")(
            self._handle, product, left, right, addend, out, preference, ctypes.c_int(1), result, ctypes.byref(found)
        )
        self._call("MatmulPreferenceDestroy", preference)
        return result if status == 0 and found.value else None

    def _point(self, product: Any, pointers: dict[int, int]) -> None:
        """Set the addresses that an epilogue reads or writes, by their attributes' numbers."""
        for attribute, address in pointers.items():
            self._set(product, attribute, ctypes.c_void_p(address))

    def _set(self, product: Any, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call("MatmulDescSetAttribute", product, ctypes.c_int(attribute), ctypes.byref(value), size)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, self._vendor.prefix + name)(*arguments))

    def _check(self, name: str, status: int) -> None:
        if status:
            raise BlasError(f"{self._vendor.prefix}{name} failed with status {status}")


class _SymbolInfo(ctypes.Structure):
    """Dl_info of dlfcn.h, which dladdr fills in."""

    _fields_ = (
        ("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("address", ctypes.c_void_p),
    )  # fmt: skip


class _Problem(NamedTuple):
    """Everything that a plan depends on."""

    a_shape: tuple[int, ...]
    n: int
    a_transposed: bool
    b_transposed: bool
    itemsize: int  # bytes of an element of a or b
    out_itemsize: int  # bytes of an element of out or addend
    strides: tuple[int, int, int, int]  # bytes between the matrices of stacks: a, b, addend, out
    epilogue: str
    alpha: float
    beta: float
    tf32: bool


class _Plan(NamedTuple):
    """The library's objects for a problem: a product's descriptor, four layouts, an algorithm, two factors."""

    product: Any
    left: Any
    right: Any
    addend: Any
    out: Any
    algorithm: Any
    alpha: Any
    beta: Any


def is_transposed(array: Any) -> bool:
    """Whether a matrix, or every matrix of a stack, is a transposed view."""
    return not (array[0] if array.ndim == 3 else array).flags.c_contiguous


def _stack_stride(array: Any) -> int:
    """Bytes from one matrix of a stack to the next; 0 for a single matrix."""
    return int(array.strides[0]) if array.ndim == 3 and len(array) > 1 else 0


def _address(array: Any) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def load_library(kind: str) -> ctypes.CDLL:
    """The library of `kind` "cuda" or "rocm". Raises BlasMissingError, which names the package to install."""
    vendor, fault = _VENDORS[kind], ""
    for name in _candidates(vendor):
        try:
            return ctypes.CDLL(name)
        except OSError as error:  # the library is not there, or it is, and does not load
            if not str(error).startswith(f"{name}: cannot open"):
                fault = fault or f"{name} does not load ({first_line(error)}): install what it lacks, or reinstall"
    raise BlasMissingError(f"{fault or f'{vendor.libraries[0]} is not there: install'} {vendor.package}")


def file_of(kind: str, library: ctypes.CDLL) -> str:
    """The path of the library of `kind`, links resolved; "" if the system cannot tell."""
    name, found = f"{_VENDORS[kind].prefix}Create", _SymbolInfo()
    if not hasattr(library, name):
        return ""
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p)
    if not ctypes.CDLL(None).dladdr(address, ctypes.byref(found)):
        return ""
    return os.path.realpath(os.fsdecode(found.file))


def _candidates(vendor: _Vendor) -> Iterator[str]:
    """Names and paths to try: on the loader's path, then in the folders of NVIDIA's wheels."""
    yield from vendor.libraries
    for name in vendor.libraries:
        for folder in sys.path:
            yield from glob.glob(f"{folder}/nvidia/*/lib/{name}")
