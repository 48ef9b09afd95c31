"""A grid has all combinations, and its usual ones have every pair of values."""

from itertools import combinations, product

from tests.support.grids import pairs

AXES = [list("abcdefghij"), ["x", "y"], ["1", "2", "3"]]


def test_all_combinations_are_there_and_the_usual_ones_have_every_pair():
    grid = pairs(*AXES)
    assert [each.values for each in grid] == list(product(*AXES))
    usual = [each.values for each in grid if not each.marks]
    for (i, first), (j, second) in combinations(enumerate(AXES), 2):
        assert {(case[i], case[j]) for case in usual} == set(product(first, second))


def test_as_few_are_usual_as_the_two_longest_axes_have_pairs():
    assert sum(not each.marks for each in pairs(*AXES)) == 30


def test_the_example_of_the_docstring():
    usual = ["".join(each.values) for each in pairs("ab", "xy", "12") if not each.marks]
    assert usual == ["ax1", "ay2", "bx2", "by1"]
