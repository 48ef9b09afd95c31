"""The example of a central difference."""

import doctest

from tests.support import differences


def test_the_example_in_the_docstring_gives_the_result_that_stands_there():
    assert doctest.testmod(differences) == (0, 3)
