"""Presets on runs that already have a tokenizer, which is never replaced without a message."""

import json
from pathlib import Path

import pytest

MODEL = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 1, "--seq", 16, "--batch", 4)


@pytest.fixture(autouse=True)
def text(hipgpt):
    """text.txt, in the current directory of the commands."""
    words = ("red", "blue", "old")
    Path("text.txt").write_text("".join(f"the {words[i * i % 3]} fox number {i % 17} ran . " for i in range(900)))


def tokenizer(run: str) -> tuple[str, int]:
    section = json.loads(Path(f"checkpoints/{run}/tokens.json").read_text())["tokenizer"]
    return section["kind"], section["vocab_limit"]


def test_a_preset_whose_tokenizer_differs_from_the_runs_is_refused_without_reset(hipgpt):
    tokenize = ("tokenize", "--run-name", "r", "--data-path", "text.txt")
    hipgpt(*tokenize)
    small = ("train", "--run-name", "r", "--preset", "small", *MODEL, "--steps", 1)
    for command in (small, ("tokenize", "--run-name", "r", "--preset", "small")):
        error = hipgpt(*command, status=2).stderr
        assert "run r has a word tokenizer of 5,000 tokens, but --preset small has a byte tokenizer of 2,000" in error
        assert "--tokenizer word --vocab-size 5000" in error
        assert "--reset" in error
    assert tokenizer("r") == ("word", 5000)
    hipgpt(*small, "--reset")
    assert tokenizer("r") == ("byte", 2000)


def test_a_flag_keeps_the_runs_tokenizer_and_one_that_was_chosen_is_kept_with_a_note(hipgpt):
    hipgpt("tokenize", "--run-name", "r", "--data-path", "text.txt")
    own = ("--tokenizer", "word", "--vocab-size", 5000)
    hipgpt("train", "--run-name", "r", "--preset", "small", *MODEL, "--steps", 1, *own)
    assert "Rate:" in hipgpt("train", "--run-name", "r", "--resume", "--steps", 2).stdout
    hipgpt("tokenize", "--run-name", "s", "--data-path", "text.txt", "--vocab-size", 50)
    out = hipgpt("train", "--run-name", "s", "--preset", "small", *MODEL, "--steps", 1).stdout
    kept, other = "run s has a word tokenizer of 50 tokens and keeps it", "--preset small has a byte tokenizer of 2,000"
    assert f"Note: {kept}; {other} tokens" in out


def test_tokenize_takes_the_tokenizer_of_a_preset_and_train_goes_on_from_there(hipgpt):
    hipgpt("tokenize", "--run-name", "r", "--data-path", "text.txt", "--preset", "small")
    assert tokenizer("r") == ("byte", 2000)
    assert "Note: run" not in hipgpt("train", "--run-name", "r", "--preset", "small", *MODEL, "--steps", 1).stdout
    hipgpt("tokenize", "--run-name", "s", "--data-path", "text.txt", "--preset", "small", "--vocab-size", 400)
    assert tokenizer("s") == ("byte", 400)
