"""Trained models, whoever trained them: those of runs, and those in Hugging Face directories."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    `directory` is the one of Hugging Face's that has the model, or had it when it was imported, if there is one.
    """

    name: str
    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    directory: str | None = None

    def cut(self, positions: int) -> "Pretrained":
        """The same model with the first `positions` positions alone: it computes the same on texts of that length."""
        config = replace(self.config, max_seq_len=positions)
        return self._replace(config=config, weights=_Cut(self.weights, positions))

    def grown(self, texts: Sequence[str]) -> "Pretrained":
        """The same model with tokens behind its own, whose texts these are.

        The embedding of a new token is the mean of those of the pieces that its text had before. So tokens differ from
        the start, also if only adapters learn. For example, that of <|user|> is the mean of those of "<", "|", "user",
        "|" and ">".
        """
        if not texts:
            return self
        config = replace(self.config, vocab_size=self.config.vocab_size + len(texts))
        return self._replace(
            config=config, weights=Grown(self.weights, [self.tokenizer.encode(text) for text in texts])
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
    """Weights whose embeddings of tokens [vocab_size, D] have a further row for each list of ids: the mean of theirs.

    That of an empty list is the mean of all.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], pieces: Sequence[Sequence[int]]) -> None:
        self._weights, self._pieces = weights, pieces

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._weights[name]
        if name not in OF_VOCAB:
            return found
        rows = [found[ids if ids else slice(None)].mean(axis=0) for ids in map(list, self._pieces)]
        return np.concatenate([found, np.stack(rows)])

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
    of_theirs = ("config.json", huggingface.ADAPTERS)
    if any((path / name).exists() for name in of_theirs) or path.name in (*huggingface.FILES, *huggingface.PICKLES):
        return of_directory(path)
    if path.is_dir() and (run := Run.at(path.resolve())).has_weights:
        return _of_checkpoint(checkpoint.load(run))
    if path.is_file() and path.suffix in (".safetensors", ".json"):
        return _of_checkpoint(checkpoint.find(path))
    raise UserError(
        f"--from {source} is neither a run with a checkpoint (`hipgpt runs` lists them), nor a checkpoint's file, nor "
        "a directory with a model of Hugging Face's"
    )


def of_directory(path: Path) -> Pretrained:
    """The model in a Hugging Face directory. Raises UserError as `huggingface.read_directory` does."""
    directory = os.path.abspath(path if path.is_dir() else path.parent)
    return Pretrained(str(path), *huggingface.read_directory(path), directory)


def _of_checkpoint(found: Checkpoint) -> Pretrained:
    tokenizer = Tokenizer.load(found.run.tokenizer_path)
    found.model_config.check_tokenizer(found.run.tokenizer_path, tokenizer.vocab_size)
    step = "imported" if found.imported else f"step {found.step}"
    return Pretrained(f"{found.run.path}, {step}", found.model_config, found.weights(), tokenizer, found.source)


def import_into(run: Run, source: Path, report: Callable[[str], object] = lambda line: None) -> Checkpoint:
    """Make a new run of the model in a Hugging Face directory, which can generate and be tuned at once.

    `report` takes a line about embeddings that have no token, if there are any.
    Raises UserError if the run exists already, if the directory has no model that hipgpt can read, if the memory does
    not suffice, or if the files cannot be written. The run then does not exist.
    """
    with run.lock():
        if run.has_weights or run.tokenizer_path.exists() or run.tokens_path.exists():
            raise UserError(f"run {run.name} exists already in {run.path}: take another --run-name")
        found = of_directory(source)
        needed = largest_tensor(found.config)
        require_memory("importing", needed, free_memory(), "close other programs, or import on another machine")
        if unused := huggingface.unused_tokens(found.tokenizer):
            report(
                f"Note: {len(unused)} of the model's {found.config.vocab_size:,} embeddings have no token in {source}: "
                f"they get special tokens, from {unused[0]} on"
            )
        return checkpoint.save_imported(run, found.config, found.weights, found.tokenizer, str(found.directory))
