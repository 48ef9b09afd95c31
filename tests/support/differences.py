"""Central differences, which tell whether a gradient is the slope of a function."""

from collections.abc import Callable
from typing import Any

import numpy as np


def both_ways(x: np.ndarray, rng: np.random.Generator, h: float, function: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """A random unit direction of the shape of x, and what `function` returns with x moved by h along and against it.

    `function` reads x, which is as before in the end. (along - against) / 2 h is the slope, so Σ gradient · direction
    has to be that, within h² / 6 times the third derivative and the rounding of the two results over 2 h.

    Example: the slope of x² at 3.

    >>> x = np.array([3.0])
    >>> direction, along, against = both_ways(x, np.random.default_rng(0), 1e-5, lambda: float(x[0] ** 2))
    >>> round(float((along - against) / 2e-5 / direction[0]), 6), x.tolist()
    (6.0, [3.0])
    """
    kept, direction = x.copy(), rng.standard_normal(x.shape)
    direction /= np.linalg.norm(direction)
    results = []
    for sign in (1, -1):
        x[...] = kept + sign * h * direction
        results.append(function())
    x[...] = kept
    return direction, *results
