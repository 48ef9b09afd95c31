"""The activations of the feed-forward layer in NumPy, and their derivatives.

GELU is the tanh approximation of Hendrycks & Gimpel 2016, as in GPT-2: x/2 · (1 + tanh(u)) with
u = sqrt(2/π) · (x + 0.044715 x³).
"""

import numpy as np

from gpt.constants import GELU_CUBIC, GELU_SCALE
from gpt.ops.cpu.sums import sum_rows
from gpt.system.threads import Scratch, blocks

CHUNK = 2**17  # elements per chain of calls in a backward pass, which goes over five arrays


def apply(activation: str, x: np.ndarray, out: np.ndarray) -> None:
    """out = activation(x)."""
    _FUNCTIONS[activation](x, out)


def backward(activation: str, x: np.ndarray, dx: np.ndarray, sums: np.ndarray, scratch: Scratch) -> None:
    """dx *= activation'(x), both [rows, F]; sums [F] = its sum over rows."""
    for chunk in blocks(slice(0, len(x)), max(1, CHUNK // x.shape[1])):
        dx[chunk] *= _DERIVATIVES[activation](x[chunk], scratch)
    sum_rows(dx, sums)


def _relu(x: np.ndarray, out: np.ndarray) -> None:
    np.maximum(x, 0, out=out)


def _relu_derivative(x: np.ndarray, scratch: Scratch) -> np.ndarray:
    derivative = scratch("relu", x.shape, x.dtype)
    np.greater(x, 0, out=derivative, casting="unsafe")
    return derivative


def _gelu(x: np.ndarray, out: np.ndarray) -> None:
    _tanh_u(np.multiply(x, x, out=out), x)
    out += 1
    out *= x
    out *= 0.5


def _gelu_derivative(x: np.ndarray, scratch: Scratch) -> np.ndarray:
    """(1 + t)/2 · (1 + (1 - t) · x u') with t = tanh(u), because 1 - t² = (1 + t)(1 - t)."""
    t, derivative, rest = (scratch(f"gelu {name}", x.shape, x.dtype) for name in ("t", "derivative", "rest"))
    square = np.multiply(x, x, out=t)
    np.multiply(square, 3 * GELU_SCALE * GELU_CUBIC, out=derivative)
    derivative += GELU_SCALE
    derivative *= x
    _tanh_u(square, x)
    derivative *= np.subtract(1, t, out=rest)
    derivative += 1
    t += 1
    t *= 0.5
    derivative *= t
    return derivative


def _tanh_u(square: np.ndarray, x: np.ndarray) -> None:
    """Overwrite `square`, x², with tanh(u)."""
    square *= GELU_SCALE * GELU_CUBIC
    square += GELU_SCALE
    square *= x
    np.tanh(square, out=square)


_FUNCTIONS = {"gelu": _gelu, "relu": _relu}
_DERIVATIVES = {"gelu": _gelu_derivative, "relu": _relu_derivative}
