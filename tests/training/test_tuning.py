"""`train --from`: a new run that begins with the weights and the tokenizer of a trained model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gpt import checkpoint, plan, pretrained
from gpt.cli import main
from gpt.config import TUNING, TUNING_RATES, TrainConfig
from gpt.errors import UserError
from gpt.export import export
from gpt.run import Run
from tests.support.pretrained import SHAPE, TEXT, saved_run
from tests.support.runs import files

STILL = ("--lr", "1e-30", "--min-lr", 0, "--weight-decay", 0)  # so small a rate leaves every float32 as it is


@pytest.fixture
def source(tmp_path):
    """A run `r` to start from, a directory `hf` with the same model, and a text."""
    found = saved_run(tmp_path / "checkpoints", dropout=0.1)
    export(found, tmp_path / "hf")
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    return found


@pytest.fixture
def tune(hipgpt, source):
    def run(*arguments, **kwargs):
        usual = ("--data-path", "text.txt", "--device", "cpu", "--batch", 2, "--log-every", 1, "--steps", 1)
        return hipgpt("train", *usual, *arguments, **kwargs)

    return run


def weights(name: str) -> dict[str, np.ndarray]:
    return dict(checkpoint.load(Run(name, Path("checkpoints"))).weights())


def test_a_run_begins_with_the_weights_the_tokenizer_and_the_dropout_of_its_source(tune, source):
    said = tune("--from", "r", "--run-name", "tuned", *STILL).stdout
    assert "From:   checkpoints/r, step 3\n" in said
    assert all(np.array_equal(tensor, weights("r")[name]) for name, tensor in weights("tuned").items())
    made = checkpoint.load(Run("tuned", Path("checkpoints")))
    assert made.step == 1
    assert made.model_config == source.model_config
    assert made.run.tokenizer_path.read_bytes() == source.run.tokenizer_path.read_bytes()
    assert made.optimizer()[1]["adam_step"] == 1, "the optimizer begins anew"


def test_a_shorter_context_takes_the_first_positions_and_dropout_may_change(tune):
    tune("--from", "r", "--run-name", "tuned", "--seq", 8, "--dropout", 0, *STILL)
    before, after = weights("r"), weights("tuned")
    positions = "transformer.wpe.weight"
    assert np.array_equal(after[positions], before[positions][:8])
    assert all(np.array_equal(tensor, before[name]) for name, tensor in after.items() if name != positions)
    assert checkpoint.load(Run("tuned", Path("checkpoints"))).model_config.dropout == 0


def test_a_tuned_run_resumes_without_its_source(tune, hipgpt):
    tune("--from", "r", "--run-name", "whole", "--steps", 4, "--ckpt-every", 2)
    shutil.rmtree("checkpoints/r")
    hipgpt("train", "--resume", "--ckpt", "checkpoints/whole/whole_step2.safetensors", "--run-name", "cut")
    assert files("cut", 4) == files("whole", 4)


def test_a_directory_of_hugging_faces_and_a_checkpoints_file_give_the_same_run(tune):
    named = {"run": "r", "file": "checkpoints/r/latest_checkpoint.safetensors", "hf": "hf"}
    for name, origin in named.items():
        tune("--from", origin, "--run-name", name, "--steps", 2)
    assert files("run", 2) == files("file", 2) == files("hf", 2)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tune, source):
    tune("--from", "r", "--run-name", "tuned")
    for path in Path("checkpoints/tuned").glob("*step1*"):
        path.unlink()
    for path in Path("checkpoints/tuned").glob("latest*"):
        path.unlink()
    tune("--from", "r", "--run-name", "tuned")
    assert checkpoint.load(Run("tuned", Path("checkpoints"))).step == 1


def test_a_run_that_has_another_tokenizer_is_refused(tune, source):
    tune("--from", "r", "--run-name", "tuned")
    shutil.copytree("checkpoints/tuned", "checkpoints/other", ignore=shutil.ignore_patterns("*step1*", "latest*"))
    other = saved_run(Path("others"), kind="word", name="word")
    error = tune("--from", "others/word", "--run-name", "other", status=2).stderr
    assert f"run other has another tokenizer than {other.run.path.resolve()}" in error


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"embed_dim": 24}, "--dim 24 contradicts .*r, step 3, whose model has 12: leave it out"),
        ({"num_layers": 3}, "--layers 3 contradicts"),
        ({"activation": "relu"}, "--activation relu contradicts"),
        ({"tie_embeddings": False}, "--no-tie False contradicts"),
        ({"max_seq_len": 25}, "--seq 25 is more than the 24 positions of"),
        ({"max_seq_len": 0}, "--seq is 0, but must be at least 1"),
        ({"kind": "word"}, "--tokenizer word describes a new tokenizer"),
        ({"vocab_limit": 300}, "--vocab-size 300 describes a new tokenizer"),
        ({"learning_rate": -1.0}, "--lr is -1"),
    ],
)
def test_flags_that_contradict_the_model_are_refused_by_name(source, tmp_path, flags, complaint):
    origin = pretrained.find("r", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=complaint):
        plan.settle(flags, None, None, resume=False, origin=origin)


def test_flags_that_agree_are_accepted_and_rates_are_those_of_tuning(source, tmp_path):
    origin = pretrained.find("r", tmp_path / "checkpoints")
    for optimizer, rate in TUNING_RATES.items():
        model, train = plan.settle({"embed_dim": 12, "optimizer": optimizer}, None, None, resume=False, origin=origin)
        assert model == source.model_config
        assert train.peak_lr == rate
    _, train = plan.settle({"learning_rate": 1e-3}, None, None, resume=False, origin=origin)
    assert (train.optimizer, train.peak_lr) == (TUNING.get("optimizer", TrainConfig.optimizer), 1e-3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--resume", "--run-name", "r"], "but --resume goes on with one"),
        (["--ckpt", "x.safetensors"], "but --ckpt x.safetensors goes on with one"),
        (["--preset", "tiny"], "--preset tiny describes a new model"),
        (["--reset"], "--reset would make another tokenizer than that of --from"),
        (["--from", "nothing"], "--from nothing is neither a run"),
        (["--from", "text.txt"], "--from text.txt is neither a run"),
        (["--from", "."], "--from . is neither a run"),
    ],
)
def test_what_does_not_go_with_from_is_refused_in_one_line(source, arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = arguments if "--from" in arguments else ["--from", "r", *arguments]
    result = CliRunner().invoke(main, ["train", "--data-path", "text.txt", "--device", "cpu", *chosen])
    assert result.exit_code == 2
    assert complaint in result.output
    assert [path.name for path in Path("checkpoints").iterdir()] == ["r"]


def test_a_cut_model_has_the_shape_that_its_config_says(source, tmp_path):
    cut = pretrained.find("r", tmp_path / "checkpoints").cut(5)
    assert (cut.config.max_seq_len, SHAPE["max_seq_len"]) == (5, 24)
    assert {name: tensor.shape for name, tensor in cut.weights.items()}["transformer.wpe.weight"] == (5, 12)
    assert len(cut.weights) == len(source.weights())
