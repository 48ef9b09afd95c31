"""The library of matrix products, and the folder in which verdicts about it are kept."""

import pytest

from gpt.ops.gpu import products
from tests.support.blas import build
from tests.support.executor import compiler


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Let models as small as these use the library's GELU."""
    monkeypatch.setattr(products, "CACHE_BYTES", 0)


@pytest.fixture
def library(tmp_path):
    if compiler() is None:
        pytest.skip("no C++ compiler")
    return build("rocm", tmp_path / "library.so")


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder
