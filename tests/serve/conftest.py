"""A server of tiny models, in this process."""

from pathlib import Path

import pytest

from gpt.chat_template import MARKERS
from tests.serve.served import client_of
from tests.support.pretrained import saved_run


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A directory with runs of tiny models: the tokens of `r`, `words` and `chars` are bytes, words, characters.

    `talks` has the markers of a conversation too.
    """
    root = tmp_path_factory.mktemp("serve")
    saved_run(root)
    saved_run(root, "word", name="words")
    saved_run(root, "char", name="chars")
    saved_run(root, name="talks", special_tokens=tuple(MARKERS.values()))
    return root


@pytest.fixture(scope="session")
def client(root):
    """A client of a server with the runs in `root`."""
    with client_of(root) as client:
        yield client


@pytest.fixture
def complete(client):
    """Ask for a completion of run `r`; returns the answer: complete("the cat", n=2)."""

    def ask(prompt, **fields):
        answer = client.post("/v1/completions", json={"model": "r", "prompt": prompt, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ask
