"""Fixtures of the tests of tokenizers."""

import pytest
import tokenizers

from gpt.tokenizer import Tokenizer
from tests.tokenizer.samples import KINDS, trained


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """kind → (ours, Hugging Face's from our file)."""
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    both = {}
    for kind in KINDS:
        trained(kind).save(path)
        both[kind] = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    return both
