"""The best checkpoint's files: after a kill at any moment, all old or all new; and never pruned."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from gpt import checkpoint
from gpt.distributed.ranks import ALONE
from gpt.trainer.best import Best
from tests.training.checkpoints import (
    MODEL,
    TRAIN,
    complete,
    is_complete,
    kill_at_removal,
    kill_at_rename,
    names,
    run,
    same,
    save,
    state,
)

__all__ = ["run"]  # a fixture


def save_best(run, step):
    return checkpoint.save_best(run, step, MODEL, TRAIN, state(step)[0], val_loss=1 / step)


def is_best(found, step):
    return (found.step, found.val_loss) == (step, 1 / step) and same(found.weights(), state(step)[0])


def test_the_best_checkpoint_comes_back_and_replaces_the_one_before(run):
    assert checkpoint.best(run) is None
    for step in (5, 10):
        for found in (save_best(run, step), checkpoint.best(run), checkpoint.load(run, best=True)):
            assert is_best(found, step)
    links = {"best_checkpoint.safetensors", "best_config.json"}
    assert names(run) == links | {"a.b_best_step10.safetensors", "a.b_best_step10_config.json"}
    assert run.has_weights
    assert not run.has_checkpoints, "training has no checkpoint to resume from"
    assert run.steps() == []


@pytest.mark.parametrize("rename", range(4))  # weights, config, and the two links
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_while_the_best_is_saved_leaves_the_old_or_the_new_whole(run, monkeypatch, rename, moment):
    save(run, 5)
    save_best(run, 5)
    kill_at_rename(monkeypatch, lambda: save_best(run, 10), rename, moment)

    step, links = 10 if (rename, moment) == (3, "after") else 5, {"best_checkpoint.safetensors", "best_config.json"}
    assert is_best(checkpoint.best(run), step)
    with run.lock():
        checkpoint.prune(run, 1)
        best = links | {path.name for path in run.best_step_paths(step)}
        assert names(run) - {".lock"} == complete(run, 5) | best
        save_best(run, 15)
    assert is_best(checkpoint.best(run), 15)
    assert is_complete(checkpoint.load(run), 5)
    best = links | {path.name for path in run.best_step_paths(15)}
    assert names(run) - {".lock"} == complete(run, 5) | best


@pytest.mark.parametrize("removals", range(4))  # the two links, config, and weights
def test_a_kill_while_the_best_is_forgotten_breaks_no_link(run, monkeypatch, removals):
    save_best(run, 5)
    kill_at_removal(monkeypatch, lambda: checkpoint.forget_best(run), removals)
    assert not [path for path in run.path.iterdir() if not path.exists()]
    assert run.has_weights == (checkpoint.best(run) is not None) == (removals == 0)
    checkpoint.forget_best(run)
    assert names(run) == set()


@pytest.mark.parametrize("follow_links", [True, False])
@pytest.mark.parametrize("file", ["best_checkpoint.safetensors", "best_config.json", "a.b_best_step10.safetensors"])
def test_the_best_checkpoint_is_found_by_any_of_its_files_in_a_copy(run, tmp_path, file, follow_links):
    save_best(run, 10)
    shutil.copytree(run.path, tmp_path / "copy", symlinks=not follow_links)
    assert is_best(checkpoint.find(tmp_path / "copy" / file), 10)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_sizes_of_the_files_are_those_of_their_tensors(run, optimizer):
    train = replace(TRAIN, optimizer=optimizer)
    save(run, 1, train=train)
    wanted = [load_file(path) for path in (run.weights_path(1), run.optimizer_path(1))]
    assert checkpoint.file_bytes(MODEL, train) == tuple(sum(array.nbytes for array in file.values()) for file in wanted)


def best_of(run, is_new):
    """The best checkpoint of a training whose weights are always those of `state(5)`."""
    optimizer = SimpleNamespace(model=SimpleNamespace(config=MODEL), weights_on_host=lambda: state(5)[0])
    return Best(run, optimizer, TRAIN, ALONE, is_new)


def test_only_a_lower_loss_that_is_finite_becomes_the_best(run):
    kept = best_of(run, is_new=True)
    for loss in (math.nan, math.inf, -math.inf):
        kept.offer(1, loss)
    assert (kept.checkpoint, checkpoint.best(run)) == (None, None)
    assert str(kept) == "No evaluation gave a finite loss."
    for step, loss in ((2, 0.5), (3, 0.5), (4, 0.6), (5, math.nan)):
        kept.offer(step, loss)
        assert (kept.checkpoint.step, checkpoint.best(run).step) == (2, 2)
    kept.offer(6, 0.4)
    assert (kept.checkpoint.step, checkpoint.best(run).step) == (6, 6)


def test_a_new_run_removes_the_best_that_a_killed_one_left_and_a_resumed_one_keeps_it(run):
    save_best(run, 5)
    assert best_of(run, is_new=False).checkpoint.step == 5
    assert best_of(run, is_new=True).checkpoint is None
    assert names(run) == set()
