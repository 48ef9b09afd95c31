"""The examples in the docstrings of gpt/tokenizer/ give the results that the docstrings show."""

import doctest
import importlib
import pkgutil

import pytest

import gpt.tokenizer

MODULES = [module.name for module in pkgutil.iter_modules(gpt.tokenizer.__path__, "gpt.tokenizer.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_the_results_that_stand_there(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed
