"""Trained models, whoever trained them: those of runs, and those in Hugging Face directories."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt import checkpoint, huggingface
from gpt.checkpoint import Checkpoint, largest_tensor
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.parameters import OF_VOCAB, POSITIONS
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

    def cut(self, positions: int) -> "Pretrained":
        """The same model with the first `positions` positions alone: it computes the same on texts of that length."""
        config = replace(self.config, max_seq_len=positions)
        return self._replace(config=config, weights=_Cut(self.weights, positions))

    def grown(self, vocab_size: int) -> "Pretrained":
        """The same model with tokens behind its own, up to `vocab_size` of them.

        The embedding of each new one is the mean of the others' (Hewitt 2021, "Initializing new word embeddings for
        pretrained language models"): it then takes little of the probability of the tokens that the model knows.
        """
        if vocab_size == self.config.vocab_size:
            return self
        return self._replace(
            config=replace(self.config, vocab_size=vocab_size), weights=Grown(self.weights, vocab_size)
        )


class _Cut(Mapping[str, np.ndarray]):
    """Weights whose embedding of positions [max_seq_len, D] has its first rows alone."""

    def __init__(self, weights: Mapping[str, np.ndarray], positions: int) -> None:
        self._weights, self._positions = weights, positions

    def __getitem__(self, name: str) -> np.ndarray:
        return self._weights[name][: self._positions if name == POSITIONS else None]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Grown(Mapping[str, np.ndarray]):
    """Weights whose embeddings of tokens [vocab_size, D] have further rows, each the mean of the others."""

    def __init__(self, weights: Mapping[str, np.ndarray], vocab_size: int) -> None:
        self._weights, self._vocab_size = weights, vocab_size

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._weights[name]
        if name not in OF_VOCAB:
            return found
        rows = np.repeat(found.mean(axis=0, keepdims=True), self._vocab_size - len(found), axis=0)
        return np.concatenate([found, rows])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def find(source: str, root: Path) -> Pretrained:
    """The model that `source` names: a run under `root`, a file of a checkpoint, or a Hugging Face directory.

    A run's model is its latest one. Its best one is named by its file. If there is both a run and a directory of that
    name, the run is meant; "./NAME" means the directory.

    Raises UserError if there is none, or as reading it does.

    Example:
        find("mine", Path("checkpoints")), find("checkpoints/mine/best_checkpoint.safetensors", …), find("data/gpt2", …)
    """
    path = Path(source)
    if path.name == source and (root / source).is_dir() and (run := Run(source, root)).has_weights:
        return _of_checkpoint(checkpoint.load(run))
    if (path / "config.json").exists() or path.name in (*huggingface.FILES, *huggingface.PICKLES):
        return of_directory(path)
    if path.is_dir():
        return _of_checkpoint(checkpoint.load(Run.at(path.resolve())))
    if path.is_file() and path.suffix in (".safetensors", ".json"):
        return _of_checkpoint(checkpoint.find(path))
    raise UserError(
        f"--from {source} is neither a run (`hipgpt runs` lists them), nor a checkpoint's file, nor a directory"
    )


def of_directory(path: Path) -> Pretrained:
    """The model in a Hugging Face directory. Raises UserError as `huggingface.read_directory` does."""
    return Pretrained(str(path), *huggingface.read_directory(path))


def _of_checkpoint(found: Checkpoint) -> Pretrained:
    tokenizer = Tokenizer.load(found.run.tokenizer_path)
    found.model_config.check_tokenizer(found.run.tokenizer_path, tokenizer.vocab_size)
    step = "imported" if found.imported else f"step {found.step}"
    return Pretrained(f"{found.run.path}, {step}", found.model_config, found.weights(), tokenizer)


def import_into(run: Run, source: Path) -> Checkpoint:
    """Make a new run of the model in a Hugging Face directory, which can generate and be tuned at once.

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
