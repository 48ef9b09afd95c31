"""Checkpoints that are saved and compared, for the tests of gpt/checkpoint."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from gpt import checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.optim import optimizer_shapes
from gpt.parameters import parameter_shapes
from gpt.run import Run
from tests.support.processes import in_a_child

MODEL = ModelConfig(vocab_size=11, max_seq_len=4, embed_dim=6, num_heads=2, ff_hidden_dim=8, num_layers=2)
TRAIN = TrainConfig(batch_size=2, total_steps=100, learning_rate=1e-2).resolved()


@pytest.fixture
def run(tmp_path):
    run = Run("a.b", tmp_path / "checkpoints")
    run.path.mkdir(parents=True)
    return run


def tensors(seed, shapes):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def state(step, model=MODEL, optimizer="adamw"):
    """Weights, the optimizer's tensors and counters, different for each step."""
    counters = {"adam_step": step - 1, "skipped": 1, "skipped_in_a_row": step % 2}
    return tensors(step, parameter_shapes(model)), tensors(step + 1000, optimizer_shapes(model, optimizer)), counters


def save(run, step, model=MODEL, train=TRAIN):
    return checkpoint.save(run, step, model, train, *state(step, model, train.optimizer))


def same(left, right):
    """Whether two mappings hold the same float32 arrays under the same names in the same order."""
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype == np.float32 and np.array_equal(left[name], right[name]) for name in left
    )


def is_complete(found, step):
    """Whether all parts of a checkpoint equal, bit for bit, those that were saved at `step`."""
    weights, optimizer, counters = state(step, optimizer=found.train_config.optimizer)
    moments, counts = found.optimizer()
    return found.step == step and same(found.weights(), weights) and same(moments, optimizer) and counts == counters


def names(run):
    return {path.name for path in run.path.iterdir()}


def complete(run, *steps):
    """The names of all files of a run that has the checkpoints of `steps`."""
    parts = {path.name for n in steps for path in (run.weights_path(n), run.optimizer_path(n), run.config_path(n))}
    return parts | {"latest_checkpoint.safetensors", "latest_config.json"}


def kill_at_rename(monkeypatch, work, rename, moment):
    """Do some work in a child that is killed at this rename, counted from 0: right "before" it, or right "after"."""
    replace, left = os.replace, [rename]

    def killing_replace(source, target):
        left[0] -= 1
        if left[0] < 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing_replace)
        assert in_a_child(work) == -signal.SIGKILL


def kill_at_removal(monkeypatch, work, removals):
    """Do some work in a child that is killed after so many removals, right before the next one."""
    unlink, left = Path.unlink, [removals]

    def killing_unlink(path, missing_ok=False):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killing_unlink)
        assert in_a_child(work) == -signal.SIGKILL
