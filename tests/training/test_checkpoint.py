"""Checkpoints: they load exactly as they were saved, and a kill at any moment leaves a run that loads."""

import json
import os
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from gpt import checkpoint
from gpt.checkpoint import pruning, reading
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.parameters import matrix_names, parameter_shapes
from gpt.run import Run
from tests.support.processes import in_a_child
from tests.training.checkpoints import (
    MODEL,
    TRAIN,
    complete,
    is_complete,
    kill_at_removal,
    kill_at_rename,
    names,
    run,
    save,
    state,
)

__all__ = ["run"]  # a fixture

RENAMES = 5  # weights, optimizer, config (the one that counts), and the two links
CONFIG_RENAME = 2  # the one that counts, after those of weights and optimizer


# ---- what is saved comes back -------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_for_bit(run):
    saved = save(run, 100)
    assert names(run) == complete(run, 100)
    for found in (saved, checkpoint.load(run), checkpoint.load(run, 100)):
        assert (found.run, found.model_config, found.train_config) == (run, MODEL, TRAIN)
        assert is_complete(found, 100)


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_file_has_gpt2s_names_and_a_head_only_if_it_is_not_tied(run, tied):
    model = ModelConfig(vocab_size=11, max_seq_len=4, embed_dim=6, num_heads=2, num_layers=1, tie_embeddings=tied)
    found = save(run, 1, model)
    assert list(found.weights()) == list(parameter_shapes(model))
    with safe_open(found.path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert ("lm_head.weight" in set(file.keys())) == (not tied)
        assert file.get_slice("transformer.h.0.attn.c_attn.weight").get_shape() == [6, 18]


def test_the_optimizer_file_has_both_moments_as_float32_and_the_counters_as_int64(run):
    save(run, 7)
    stored = load_file(run.optimizer_path(7))
    moments = {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in parameter_shapes(MODEL)}
    counters = {"adam_step", "skipped", "skipped_in_a_row"}
    assert stored.keys() == moments | counters
    assert {stored[name].dtype.name for name in moments} == {"float32"}
    assert {(stored[name].dtype.name, stored[name].shape) for name in counters} == {("int64", ())}


def test_the_config_has_hipgpts_sections_with_paths_relative_to_the_run(run):
    save(run, 100)
    config = json.loads(run.config_path(100).read_text())
    assert config["model"] == MODEL.to_json()
    assert config["tokenizer"] == {"path": "tokenizer.json", "tokens_path": "tokens.bin"}
    assert config["training"] == {**TRAIN.to_json(), "steps": 100}
    assert config["checkpoint"] == {"latest": "a.b_step100.safetensors", "step": 100}


def test_the_links_are_relative_and_point_at_the_latest(run):
    save(run, 50)
    save(run, 100)
    assert os.readlink(run.latest_weights_path) == "a.b_step100.safetensors"
    assert os.readlink(run.latest_config_path) == "a.b_step100_config.json"
    assert is_complete(checkpoint.load(run), 100)
    assert is_complete(checkpoint.load(run, 50), 50)


def test_strided_arrays_are_saved_with_the_values_that_they_show(run):
    weights, optimizer, counters = state(1)
    strided = {name: np.asfortranarray(array) for name, array in weights.items()}
    strided["transformer.ln_f.bias"] = np.repeat(weights["transformer.ln_f.bias"], 2)[::2]
    checkpoint.save(run, 1, MODEL, TRAIN, strided, optimizer, counters)
    assert is_complete(checkpoint.load(run), 1)


def test_a_checkpoint_of_muon_has_one_moment_of_a_blocks_matrix_and_two_of_the_rest(run):
    save(run, 1, train=replace(TRAIN, optimizer="muon"))
    kept = set(load_file(run.optimizer_path(1))) - {"adam_step", "skipped", "skipped_in_a_row"}
    matrices = set(matrix_names(MODEL))
    assert len(matrices) == 4 * MODEL.num_layers
    others = parameter_shapes(MODEL).keys() - matrices
    moments = {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in others}
    assert kept == moments | {f"momentum.{name}" for name in matrices}
    assert is_complete(checkpoint.load(run), 1)


def test_a_checkpoint_from_before_optimizers_could_be_chosen_is_adamws(run):
    save(run, 1)
    config = json.loads(run.config_path(1).read_text())
    del config["training"]["optimizer"]
    run.config_path(1).write_text(json.dumps(config))
    assert checkpoint.load(run).train_config.optimizer == "adamw"
    assert is_complete(checkpoint.load(run), 1)


def test_a_config_with_hipgpts_keys_only_takes_our_defaults_and_reads_in_sequence(run):
    model = ModelConfig(vocab_size=11, max_seq_len=4, embed_dim=6, num_heads=2, ff_hidden_dim=8, num_layers=1)
    save(run, 10, model)
    config = {
        "model": {
            "vocab_size": 11, "max_seq_len": 4, "embed_dim": 6, "num_heads": 2, "ff_hidden_dim": 8, "num_layers": 1,
        },
        "tokenizer": {"path": "tokenizer.json", "tokens_path": "tokens.bin"},
        "training": {"batch_size": 4, "learning_rate": 0.01, "steps": 10},
        "checkpoint": {"latest": "a.b_step10.safetensors", "step": 10},
    }  # fmt: skip
    run.config_path(10).write_text(json.dumps(config))
    found = checkpoint.load(run)
    ours = TrainConfig(batch_size=4, learning_rate=0.01, sampling="sequential")
    assert (found.model_config, found.train_config) == (model, ours.resolved())


# ---- finding a checkpoint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("a.b_step5.safetensors", 5), ("a.b_step5_config.json", 5),
        ("latest_checkpoint.safetensors", 10), ("latest_config.json", 10),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["checkpoints/a.b", "some where/else", "."])
def test_a_checkpoint_is_found_by_any_of_its_files_in_any_directory(run, tmp_path, monkeypatch, file, step, place):
    save(run, 5)
    save(run, 10)
    directory = tmp_path / place
    if place != "checkpoints/a.b":
        shutil.copytree(run.path, directory, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(directory)
    for path in (directory / file, file):
        found = checkpoint.find(path)
        assert is_complete(found, step)
        assert found.run.path == directory.resolve()


def test_the_latest_weights_are_found_by_name_on_a_file_system_without_links(run):
    save(run, 5)
    run.latest_weights_path.unlink()
    target = run.latest_config_path.resolve()
    run.latest_config_path.unlink()
    shutil.copy(target, run.latest_config_path)
    assert is_complete(checkpoint.find(run.latest_weights_path), 5)


def test_a_weights_file_that_was_given_another_name_is_read_itself(run):
    save(run, 5)
    for part in (".safetensors", "_optimizer.safetensors", "_config.json"):
        shutil.move(run.path / f"a.b_step5{part}", run.path / f"best{part}")
    assert is_complete(checkpoint.find(run.path / "best.safetensors"), 5)


@pytest.mark.parametrize("file", ["latest_checkpoint.safetensors", "a.b_step5_config.json"])
def test_a_link_from_anywhere_leads_to_the_run_it_points_into(run, tmp_path, file):
    save(run, 5)
    (tmp_path / "my_model").symlink_to(run.path / file)
    found = checkpoint.find(tmp_path / "my_model")
    assert is_complete(found, 5)
    assert found.run.tokenizer_path == run.tokenizer_path.resolve()


@pytest.mark.parametrize("follow_links", [True, False])
def test_a_run_that_was_copied_or_renamed_loads_and_trains_on(run, tmp_path, follow_links):
    save(run, 5)
    renamed = Run("renamed", tmp_path)
    shutil.copytree(run.path, renamed.path, symlinks=not follow_links)
    shutil.rmtree(run.path)
    assert is_complete(checkpoint.load(renamed), 5)
    assert is_complete(checkpoint.find(renamed.latest_weights_path), 5)
    save(renamed, 10)
    checkpoint.prune(renamed, 1)
    assert is_complete(checkpoint.load(renamed), 10)
    assert names(renamed) == complete(renamed, 10), "steps from before the run was renamed are pruned too"


@pytest.mark.parametrize("file", ["missing.safetensors", "missing_config.json", "."])
def test_a_path_that_is_not_a_file_is_refused(run, file):
    save(run, 5)
    with pytest.raises(UserError, match=r"^--ckpt .* (is a directory|does not exist): name a checkpoint's "):
        checkpoint.find(run.path / file)


@pytest.mark.parametrize("file", ["a.b_step5_optimizer.safetensors", "metrics.jsonl"])
def test_another_file_of_a_run_is_refused_as_what_it_is(run, file):
    save(run, 5)
    run.metrics_path.touch()
    with pytest.raises(UserError, match=rf"^--ckpt .*{file} is not a checkpoint's weights: name those, its config or "):
        checkpoint.find(run.path / file)


def test_a_weights_file_without_a_config_is_refused(run):
    save(run, 5)
    run.config_path(5).unlink()
    with pytest.raises(UserError, match=r"^.*a\.b_step5_config\.json is missing: restore it"):
        checkpoint.find(run.weights_path(5))


# ---- kills and full disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rename", range(RENAMES))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_rename_leaves_a_run_that_loads_saves_and_prunes(run, monkeypatch, rename, moment):
    save(run, 5)
    kill_at_rename(monkeypatch, lambda: save(run, 10), rename, moment)

    found = checkpoint.load(run)
    is_new = rename > CONFIG_RENAME or (rename, moment) == (CONFIG_RENAME, "after")
    assert is_complete(found, 10 if is_new else 5)
    assert all(is_complete(checkpoint.load(run, step), step) for step in run.steps())
    with run.lock():
        checkpoint.finish(found)
        assert {run.latest_weights_path.resolve(), run.weights_path(found.step)} == {found.path}
        assert run.latest_config_path.resolve() == run.config_path(found.step)
        checkpoint.prune(run, 1)
        assert is_complete(checkpoint.load(run), found.step)
        save(run, 15)
        checkpoint.prune(run, 1)
        assert names(run) - {".lock"} == complete(run, 15)


@pytest.mark.parametrize("too_large", ["weights", "optimizer"])
@pytest.mark.parametrize("step", [5, 10])
def test_running_out_of_space_leaves_the_previous_checkpoint_and_no_temporary_file(run, tmp_path, too_large, step):
    save(run, 5)
    before = names(run)
    sizes = {"weights": run.weights_path(5).stat().st_size, "optimizer": run.optimizer_path(5).stat().st_size}
    assert sizes["weights"] < sizes["optimizer"]

    def save_without_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[too_large] - 1, resource.RLIM_INFINITY))
        with pytest.raises(UserError) as error:
            checkpoint.save(run, step, MODEL, TRAIN, *state(99))
        (tmp_path / "message").write_text(str(error.value))

    assert in_a_child(save_without_space) == 0
    message = (tmp_path / "message").read_text()
    assert message.startswith(f"cannot save {run.weights_path(step)}: ")
    assert "File too large" in message
    assert "\n" not in message
    assert names(run) == before
    assert is_complete(checkpoint.load(run), 5)


def test_saving_into_a_missing_directory_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"^cannot save .*none_step1\.safetensors: No such file or directory$"):
        save(Run("none", tmp_path), 1)


# ---- pruning ------------------------------------------------------------------------------------------------------


def test_pruning_keeps_the_highest_steps_whole_regardless_of_file_times(run):
    for age, step in enumerate((100, 200, 300)):
        save(run, step)
        os.utime(run.config_path(step), (1e9 - age, 1e9 - age))  # the clock goes back
    checkpoint.prune(run, 3)
    assert run.steps() == [100, 200, 300]
    checkpoint.prune(run, 2)
    assert names(run) == complete(run, 200, 300)
    assert all(is_complete(checkpoint.load(run, step), step) for step in (200, 300))


@pytest.mark.parametrize("as_plain_files", [False, True])
def test_pruning_keeps_the_checkpoint_that_latest_points_at(run, as_plain_files):
    for step in (30, 20, 10):
        save(run, step)
    if as_plain_files:
        for link in (run.latest_weights_path, run.latest_config_path):
            target = link.resolve()
            link.unlink()
            shutil.copy(target, link)
    checkpoint.prune(run, 1)
    assert names(run) == complete(run, 10, 30)


def test_pruning_breaks_neither_link_if_they_name_different_checkpoints(run):
    for step in (10, 20, 30):
        save(run, step)
    run.latest_weights_path.unlink()
    run.latest_weights_path.symlink_to(run.weights_path(10).name)
    checkpoint.prune(run, 1)
    assert names(run) == complete(run, 10, 30)


@pytest.mark.parametrize("removals", range(3))
def test_a_kill_while_pruning_leaves_only_whole_checkpoints_in_the_list(run, monkeypatch, removals):
    save(run, 5)
    save(run, 10)
    kill_at_removal(monkeypatch, lambda: checkpoint.prune(run, 1), removals)
    assert all(is_complete(checkpoint.load(run, step), step) for step in run.steps())
    checkpoint.prune(run, 1)
    assert names(run) == complete(run, 10)


def test_a_checkpoint_that_is_removed_while_it_is_read_gives_way_to_the_next(run, monkeypatch):
    save(run, 5)
    opened, trainers = reading.opened, [True]

    def opened_later(path, layout):
        if trainers:  # a training process saves and prunes, after the config was read
            trainers.clear()
            save(run, 10)
            checkpoint.prune(run, 1)
        return opened(path, layout)

    monkeypatch.setattr(reading, "opened", opened_later)
    assert is_complete(checkpoint.load(run), 10)


def test_configs_are_gone_from_the_disk_before_their_checkpoints_are_removed(run, monkeypatch):
    """After a power cut, a step whose config is on the disk is whole."""
    save(run, 5)
    save(run, 10)
    synced = []
    monkeypatch.setattr(pruning, "sync_directory", lambda path: synced.append(names(run)))
    checkpoint.prune(run, 1)
    assert synced == [complete(run, 5, 10) - {run.config_path(5).name}]
    assert names(run) == complete(run, 10)


def test_a_run_that_is_finished_anew_is_pruned(run):
    train = replace(TRAIN, keep_last=1)
    save(run, 5, train=train)
    save(run, 10, train=train)  # and then the process is killed
    checkpoint.finish(checkpoint.load(run))
    assert names(run) == complete(run, 10)


def test_pruning_removes_weights_that_never_got_their_config_and_nothing_that_is_not_the_runs(run):
    save(run, 5)
    others = {"tokenizer.json", "tokens.bin", "metrics.jsonl", "a.b_step3.safetensors.bak", "aXb_step3.safetensors"}
    for name in others | {"a.b_step3.safetensors", "a.b_step4_optimizer.safetensors"}:
        (run.path / name).touch()
    checkpoint.prune(run, 1)
    assert names(run) == complete(run, 5) | others


def test_pruning_removes_nothing_while_the_latest_checkpoint_does_not_load(run):
    for step in (5, 10):
        save(run, step)
    run.weights_path(10).write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.prune(run, 1)
    assert names(run) == complete(run, 5, 10)
