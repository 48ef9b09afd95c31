"""The files that come with hipgpt besides its code: the sources of the kernels, and a text to train on.

In a checkout they lie beside the package, in kernels/ and data/. A wheel has them inside the package (see setup.py),
because neither name may become a top-level name in site-packages.
"""

from pathlib import Path

from gpt.config import DATA_PATH

_PACKAGE = Path(__file__).parent.parent


def kernel(file: str) -> Path:
    """The path of a file in kernels/, such as "gelu.hip"."""
    return _folder("kernels", "kernels") / file


def default_text() -> str:
    """The path of the text to train on if the user names none: data/data.txt if it exists, else the shipped one."""
    return DATA_PATH if Path(DATA_PATH).exists() else str(_folder("texts", "data") / "data.txt")


def _folder(inside: str, beside: str) -> Path:
    """The folder `inside` the package if there is one, else the one `beside` it."""
    installed = _PACKAGE / inside
    return installed if installed.is_dir() else _PACKAGE.parent / beside
