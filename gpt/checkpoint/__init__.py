"""Checkpoints: safetensors and JSON files, written so that a kill at any moment leaves a run that can go on.

A checkpoint is three files (see `Run`). All three are written under temporary names, and are on the disk before the
first rename. Then they are moved into place: weights, optimizer, config. The rename of the config is the one that
counts: a step that has a config is whole. Last, `latest_config.json` is pointed at it. If there is a whole step above
the one that it names, a kill or a power cut came before that. docs/formats.md explains the state after each write.

With `--lora` the weights of a checkpoint are adapters alone. The run's base, the weights that they were trained beside,
is written once, before the first step, and complete: a run needs nothing that is elsewhere.

The best checkpoint so far is weights and config alone, in files of its own that pruning never touches. It is written
the same way, and `best_config.json`, moved last, decides which one is the best. So each evaluation that is the best so
far writes one file of weights (4 bytes a parameter); a checkpoint writes three times as much.

    contents.py   what the files contain
    reading.py    finds checkpoints and reads them
    pruning.py    removes those that are no longer wanted
    writing.py    writes them
"""

from gpt.checkpoint.contents import Checkpoint, base_bytes, file_bytes, largest_tensor
from gpt.checkpoint.pruning import forget_best, prune
from gpt.checkpoint.reading import best, find, load
from gpt.checkpoint.writing import finish, save, save_base, save_best, save_imported

__all__ = [
    "Checkpoint", "base_bytes", "best", "file_bytes", "find", "finish", "forget_best", "largest_tensor", "load",
    "prune", "save", "save_base", "save_best", "save_imported",
]  # fmt: skip
