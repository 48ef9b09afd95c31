"""The files that come with hipgpt besides its code: the kernels' sources, and a text to train on.

In a checkout they lie beside the package, in kernels/ and data/. A wheel has them inside it (see setup.py), because
neither may become a top-level name of site-packages.
"""

from pathlib import Path

from gpt.config import DATA_PATH

_PACKAGE = Path(__file__).parent.parent


def kernel(file: str) -> Path:
    """A source of kernels/, such as "gelu.hip"."""
    return _place("kernels", "kernels") / file


def default_text() -> str:
    """The text that a run learns from if nothing names another: data/data.txt, or else the one that hipgpt brings."""
    return DATA_PATH if Path(DATA_PATH).exists() else str(_place("texts", "data") / "data.txt")


def _place(inside: str, beside: str) -> Path:
    """The folder `inside` the package if there is one, else the one `beside` it."""
    installed = _PACKAGE / inside
    return installed if installed.is_dir() else _PACKAGE.parent / beside
