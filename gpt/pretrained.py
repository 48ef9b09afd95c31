"""Weights to start from: those of a run, or those in a directory of Hugging Face's."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt import checkpoint, huggingface
from gpt.checkpoint import Checkpoint, largest_tensor
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.run import Run
from gpt.system.limits import free_memory, require_memory
from gpt.tokenizer import Tokenizer


class Pretrained(NamedTuple):
    """A trained model: its shape, its weights, each read when it is asked for, and its tokenizer.

    `name` is for messages. The weights are float32, with the names, order and shapes of `parameter_shapes`.
    """

    name: str
    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokenizer: Tokenizer


def of_directory(path: Path) -> Pretrained:
    """The model in a directory of Hugging Face's. Raises UserError as `huggingface.read_directory` does."""
    return Pretrained(str(path), *huggingface.read_directory(path))


def import_into(run: Run, source: Path) -> Checkpoint:
    """Make a new run of the model in a directory of Hugging Face's, which can generate and be tuned at once.

    Raises UserError if the run exists already, if the directory has no model that hipgpt can read, if the memory does
    not suffice, or if the files cannot be written. The run then does not exist.
    """
    with run.lock():
        if run.has_weights or run.tokenizer_path.exists() or run.tokens_path.exists():
            raise UserError(f"run {run.name} exists already in {run.path}: take another --run-name")
        found = of_directory(source)
        needed = largest_tensor(found.config)
        require_memory("importing", needed, free_memory(), "close other programs, or import on another machine")
        return checkpoint.save_imported(run, found.config, found.weights, found.tokenizer)
