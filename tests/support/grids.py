"""Grids of test cases, of which the usual tests take those that have every pair of values."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairs(*axes: Sequence[Any]) -> list[Any]:
    """Every combination of the axes' values, as parameters of pytest; those that add no pair of values are slow.

    So a fault that two values cause together is found by the usual tests, and one that takes three of them by -m slow.

    Example: of pairs("ab", "xy", "12") a x 1, a y 2, b x 2 and b y 1 are usual, and the other four are slow.
    """
    cases = list(product(*(range(len(axis)) for axis in axes)))
    places = list(combinations(range(len(axes)), min(2, len(axes))))

    def pairs_of(case: tuple[int, ...]) -> set[Any]:
        return {(place, tuple(case[axis] for axis in place)) for place in places}

    missing, usual = set().union(*map(pairs_of, cases)), set()
    while missing:
        best = max(cases, key=lambda case: len(pairs_of(case) & missing))  # the first of equals
        usual.add(best)
        missing -= pairs_of(best)
    return [
        pytest.param(
            *(axis[at] for axis, at in zip(axes, case, strict=True)), marks=() if case in usual else pytest.mark.slow
        )
        for case in cases
    ]
