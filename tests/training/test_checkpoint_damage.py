"""Missing, damaged and unsuitable checkpoints: one line names each."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt import checkpoint
from gpt.errors import UserError
from gpt.run import Run
from tests.training.checkpoints import is_complete, run, same, save, state

__all__ = ["run"]  # a fixture


def test_a_missing_run_or_checkpoint_is_named_with_those_there_are(run, tmp_path):
    with pytest.raises(UserError, match=r"^there is no run .*nowhere: `hipgpt runs` .*$"):
        checkpoint.load(Run("nowhere", tmp_path))
    for step, missing in ((None, "has no checkpoint yet"), (5, "has no checkpoint of step 5: there are none")):
        with pytest.raises(UserError, match=rf"^{run.path} {missing}.*$"):
            checkpoint.load(run, step)
    save(run, 5)
    save(run, 10)
    with pytest.raises(UserError, match=r"^.* has no checkpoint of step 7: there are steps 5, 10$"):
        checkpoint.load(run, 7)


@pytest.mark.parametrize("damage", ["missing", "broken link"])
def test_without_a_latest_config_the_highest_step_is_the_latest(run, damage):
    for step in (5, 10, 7):
        save(run, step)
    run.latest_config_path.unlink()
    if damage == "broken link":
        run.latest_config_path.symlink_to("gone.json")
    assert is_complete(checkpoint.load(run), 10)
    for step in run.steps():
        run.config_path(step).unlink()
    complaint = "is a broken link" if damage == "broken link" else "without --resume"
    with pytest.raises(UserError, match=complaint):
        checkpoint.load(run)


@pytest.mark.parametrize("as_plain_file", [False, True])
def test_a_step_that_latest_config_does_not_name_yet_is_the_latest(run, as_plain_file):
    """As after a kill or a power cut between the step's files and the links."""
    save(run, 5)
    before = run.config_path(5).read_text()
    save(run, 10)
    run.latest_config_path.unlink()
    if as_plain_file:
        run.latest_config_path.write_text(before)
    else:
        run.latest_config_path.symlink_to(run.config_path(5).name)
    assert is_complete(checkpoint.load(run), 10)
    checkpoint.finish(checkpoint.load(run))
    assert json.loads(run.latest_config_path.read_text())["checkpoint"]["step"] == 10


def without(*keys):
    def damage(config):
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return damage


def with_value(section, key, value):
    return lambda config: config[section].update({key: value})


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (without("model"), "it has no model"),
        (without("training"), "it has no training"),
        (without("checkpoint"), "it has no checkpoint"),
        (without("model", "vocab_size"), r"it has no model\.vocab_size"),
        (without("checkpoint", "latest"), r"it has no checkpoint\.latest"),
        (without("checkpoint", "step"), r"it has no checkpoint\.step"),
        (with_value("model", "num_layers", 0), "--layers is 0"),
        (with_value("model", "embed_dim", "wide"), r"model\.embed_dim is 'wide', but must be an integer"),
        (with_value("model", "num_layers", 1.5), r"model\.num_layers is 1\.5, but must be an integer"),
        (with_value("training", "batch_size", None), r"training\.batch_size is None, but must be an integer"),
        (with_value("checkpoint", "latest", 5), r"checkpoint\.latest is 5, but must be a path"),
        (with_value("checkpoint", "step", "last"), r"checkpoint\.step is 'last', but must be an integer"),
        (with_value("model", "vocab_size", 12), r"wte\.weight is F32 \[11, 6\], not F32 \[12, 6\]"),
        (with_value("model", "tie_embeddings", False), r"no tensor lm_head\.weight"),
        (with_value("model", "num_layers", 3), r"no tensor transformer\.h\.2\.ln_1\.weight"),
        (with_value("model", "num_layers", 1), r"unknown tensor transformer\.h\.1\.attn\.c_attn\.bias"),
        (with_value("checkpoint", "latest", "gone.safetensors"), "is missing"),
    ],
)
def test_a_config_that_lacks_something_or_does_not_fit_is_refused_in_one_line(run, damage, complaint):
    save(run, 5)
    config = json.loads(run.config_path(5).read_text())
    damage(config)
    run.config_path(5).write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"^{run.path}/\S+\.(json|safetensors) .*{complaint}") as error:
        checkpoint.load(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 5}', "null", "\N{SNOWMAN}", b"\xff\xfe\x00"])
def test_a_file_that_is_not_a_config_is_refused_in_one_line(run, text):
    save(run, 5)
    run.config_path(5).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"^.*config\.json is not .*$"):
        checkpoint.load(run)


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def truncate_header(path):
    path.write_bytes(path.read_bytes()[:20])


def empty(path):
    path.write_bytes(b"")


def scramble_header(path):
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"\xff" + content[9:])


def change(name, tensor):
    def damage(path):
        stored = load_file(path)
        del stored[name]
        save_file({**stored, **({} if tensor is None else {name: tensor})}, path)

    return damage


DAMAGES = {
    "missing": (remove, "is missing"),
    "truncated": (truncate, "is damaged"),
    "header truncated": (truncate_header, "is damaged"),
    "empty": (empty, "is damaged"),
    "header scrambled": (scramble_header, "is damaged"),
}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        *DAMAGES.values(),
        (change("transformer.ln_f.bias", None), r"no tensor transformer\.ln_f\.bias"),
        (change("transformer.ln_f.bias", np.zeros(7, np.float32)), r"is F32 \[7\], not F32 \[6\]"),
        (change("transformer.ln_f.bias", np.zeros(6, np.float16)), r"is F16 \[6\], not F32 \[6\]"),
    ],
)
def test_damaged_weights_are_named_when_the_checkpoint_is_opened_and_when_it_is_read(run, damage, complaint):
    opened_before = save(run, 5)
    damage(run.weights_path(5))
    for attempt in (lambda: checkpoint.load(run), lambda: checkpoint.find(run.config_path(5)), opened_before.weights):
        with pytest.raises(UserError, match=rf"^.*a\.b_step5\.safetensors .*{complaint}.*$"):
            attempt()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        *DAMAGES.values(),
        (change("skipped", None), "no tensor skipped"),
        (change("adam_step", np.zeros((), np.int32)), r"adam_step is I32 \[\], not I64 \[\]"),
        (change("exp_avg_sq.transformer.ln_f.bias", np.zeros(7, np.float32)), r"is F32 \[7\], not F32 \[6\]"),
    ],
)
def test_a_damaged_optimizer_file_is_named_but_only_by_those_who_need_it(run, damage, complaint):
    save(run, 5)
    damage(run.optimizer_path(5))
    found = checkpoint.load(run)
    assert same(found.weights(), state(5)[0])
    with pytest.raises(UserError, match=rf"^.*a\.b_step5_optimizer\.safetensors .*{complaint}.*$"):
        found.optimizer()


def test_a_checkpoint_never_reads_outside_its_directory(run, tmp_path):
    save(run, 5)
    shutil.copy(run.weights_path(5), tmp_path / "outside.safetensors")
    config = run.config_path(5)
    config.write_text(config.read_text().replace("a.b_step5.safetensors", "../../outside.safetensors"))
    with pytest.raises(UserError, match=rf"^{run.path}/outside\.safetensors is missing"):
        checkpoint.load(run)


@pytest.mark.parametrize("count", [-1, 2**53 + 1, 2**63 - 1])
def test_a_counter_out_of_range_is_damage(run, count):
    save(run, 5)
    path = run.optimizer_path(5)
    save_file({**load_file(path), "adam_step": np.array(count)}, path)
    with pytest.raises(UserError, match=rf"^{path} is damaged: adam_step is {count}, but must be from 0 to {2**53}: "):
        checkpoint.load(run).optimizer()
