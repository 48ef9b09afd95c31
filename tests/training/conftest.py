"""A fixture of the tests of gpt/prepare."""

from contextlib import contextmanager

import pytest

from gpt import provenance
from gpt.corpus import Sources
from gpt.tokenizer import Tokenizer


@pytest.fixture
def idle(monkeypatch):
    """Inside `with idle():`, training a tokenizer, encoding, and digesting any file but tokenizer.json are errors."""

    @contextmanager
    def nothing_is_read():
        def refuse(*_, **__):
            raise AssertionError("the text or the tokens were read again")

        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "train_bpe", refuse)
            patch.setattr(Tokenizer, "encode_blocks", refuse)
            patch.setattr(Sources, "blocks", refuse)
            patch.setattr(Sources, "feed", refuse)
            patch.setattr(provenance.files, "sha256", refuse)
            yield

    return nothing_is_read
