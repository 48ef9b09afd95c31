"""The tokenizer of another program's model, read from the directory that Hugging Face keeps it in."""

from pathlib import Path

from gpt.errors import UserError
from gpt.tokenizer.tokenizer import Tokenizer


def read_foreign(directory: Path) -> Tokenizer:
    """The tokenizer in `directory`: that of its tokenizer.json.

    Raises UserError if there is none, or if it is not one that `Tokenizer.load` reads.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{path} is missing: put the model's tokenizer there")
    return Tokenizer.load(path)
