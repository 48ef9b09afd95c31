"""hipgpt: train GPT-2 style language models from a text file, without PyTorch.

As a library, it is these names; docs/library.md shows how to use them:

    import gpt

    model = gpt.train("my.txt", run_name="mine", preset="small")
    print(model.generate("Once upon a time"))
    model = gpt.load("checkpoints/mine")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt.errors import UserError
    from gpt.library import LanguageModel, load, train
    from gpt.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["LanguageModel", "Tokenizer", "UserError", "load", "train"]

_HOMES = {"Tokenizer": "gpt.tokenizer", "UserError": "gpt.errors"}


def __getattr__(name: str) -> Any:
    """The names of the library, each imported when it is first used, so that `import gpt` stays fast (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "gpt.library")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
