"""Writes checkpoints. The docstring of this package says in which order, and why."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gpt.checkpoint.contents import Checkpoint, config_text, trained_layout
from gpt.checkpoint.pruning import forget_other_best, prune
from gpt.checkpoint.reading import read
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import cannot
from gpt.optim import COUNTERS, optimizer_shapes
from gpt.run import CONFIG, OPTIMIZER, WEIGHTS, Run
from gpt.system.files import atomic_path, atomic_paths, commit, link_atomically, remove
from gpt.system.tensors import write_tensors
from gpt.tokenizer import Tokenizer


def save(
    run: Run,
    step: int,
    model_config: ModelConfig,
    train_config: TrainConfig,
    weights: Mapping[str, np.ndarray],
    optimizer: Mapping[str, np.ndarray],
    counters: Mapping[str, int],
) -> Checkpoint:
    """Write the checkpoint of `step` and make it the latest. The caller holds `run.lock()`.

    `weights` are named as in `trained_shapes` and `optimizer` as in `optimizer_shapes`, all float32; `counters` are
    named as in `COUNTERS`.

    Raises UserError if the files cannot be written (no space, no permission). Earlier checkpoints are then intact.
    """
    stem = f"{run.name}_step{step}"  # also if the run had another name when this step was saved before
    weights_path, optimizer_path, config_path = (run.path / (stem + part) for part in (WEIGHTS, OPTIMIZER, CONFIG))
    config = config_text(run, step, model_config, train_config, weights_path)
    with cannot(f"save {weights_path}", even_if_missing=True):
        with atomic_paths(weights_path, optimizer_path, config_path) as (weights_file, optimizer_file, config_file):
            write_tensors(weights_file, {name: weights[name] for name in trained_layout(model_config, train_config)})
            moments = optimizer_shapes(model_config, train_config.optimizer, train_config.lora)
            tensors = {name: optimizer[name] for name in moments}
            write_tensors(optimizer_file, tensors | {name: np.array(counters[name], np.int64) for name in COUNTERS})
            config_file.write_text(config, encoding="utf-8")
        _point_latest_at(run, weights_path, config_path)
    return Checkpoint(run, step, model_config, train_config, weights_path)


def save_best(
    run: Run,
    step: int,
    model_config: ModelConfig,
    train_config: TrainConfig,
    weights: Mapping[str, np.ndarray],
    val_loss: float,
) -> Checkpoint:
    """Make the weights of `step` the best checkpoint, in place of the one before. The caller holds `run.lock()`.

    Raises UserError if the files cannot be written. The best checkpoint before is then intact.
    """
    weights_path, config_path = run.best_step_paths(step)
    config = config_text(run, step, model_config, train_config, weights_path, val_loss=val_loss)
    with cannot(f"save {weights_path}", even_if_missing=True):
        with atomic_paths(weights_path, config_path) as (weights_file, config_file):
            write_tensors(weights_file, {name: weights[name] for name in trained_layout(model_config, train_config)})
            config_file.write_text(config, encoding="utf-8")
        link_atomically(run.best_weights_path, weights_path.name, copied=False)
        link_atomically(run.best_config_path, config_path.name)
    forget_other_best(run, weights_path)
    return Checkpoint(run, step, model_config, train_config, weights_path, val_loss)


def save_base(run: Run, weights: Mapping[str, np.ndarray]) -> None:
    """Write the weights, named as in `parameter_shapes`, that a run trains adapters beside. The caller holds its lock.

    They are asked for one at a time. Raises UserError if the file cannot be written, and whatever `weights` raises.
    """
    with cannot(f"save {run.base_path}", even_if_missing=True), atomic_path(run.base_path) as file:
        write_tensors(file, weights)


def save_imported(
    run: Run, model_config: ModelConfig, weights: Mapping[str, np.ndarray], tokenizer: Tokenizer, source: str
) -> Checkpoint:
    """Make a new run of weights that another program trained: a checkpoint of step 0, and its tokenizer.

    `source` is the directory that they are from.
    `weights` are float32 and named as in `parameter_shapes`; they are asked for one at a time. The files are made in a
    directory of their own, and one rename lets all of them take their places. The caller holds `run.lock()`.

    Raises UserError if the files cannot be written, and whatever `weights` raises. The run then has none of them.
    """
    staged, weights_path = run.staged_path, run.path / f"{run.name}_step0{WEIGHTS}"
    config_path, train_config = run.path / f"{run.name}_step0{CONFIG}", TrainConfig()
    config = config_text(run, 0, model_config, train_config, weights_path, imported=True, source=source)
    remove(staged)
    try:
        with cannot(f"save {weights_path}", even_if_missing=True):
            staged.mkdir()
            write_tensors(staged / weights_path.name, weights)
            (staged / config_path.name).write_text(config, encoding="utf-8")
            tokenizer.save(staged / run.tokenizer_path.name)
            commit(staged, run.committed_path)
            _point_latest_at(run, weights_path, config_path)
    finally:
        remove(staged)
    return Checkpoint(run, 0, model_config, train_config, weights_path, imported=True, source=source)


def finish(latest: Checkpoint) -> None:
    """Complete the links and the pruning that a killed process left undone. The caller holds the run's lock.

    Raises UserError if the links cannot be written.
    """
    run = latest.run
    with cannot(f"write {run.latest_config_path}", even_if_missing=True):
        if not run.latest_config_path.exists() or read(run, run.latest_config_path).step != latest.step:
            _point_latest_at(run, latest.path, run.config_path(latest.step))
    prune(run, latest.train_config.keep_last)


def _point_latest_at(run: Run, weights_path: Path, config_path: Path) -> None:
    link_atomically(run.latest_weights_path, weights_path.name, copied=False)
    link_atomically(run.latest_config_path, config_path.name)
