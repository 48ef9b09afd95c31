"""The examples in the docstrings of gpt/corpus/ give the results that the docstrings show."""

import doctest
import importlib
import pkgutil

import pytest

import gpt.corpus

MODULES = [module.name for module in pkgutil.iter_modules(gpt.corpus.__path__, "gpt.corpus.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_the_results_that_stand_there(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed
