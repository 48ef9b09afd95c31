"""`--val-path`: the held-out text has sources of its own, and its tokens are the last ones of tokens.bin."""

import math

import pytest

from gpt.batches import Batches
from gpt.tokenizer import Tokenizer
from tests.support.project import TEXT

HELD_OUT = "a dog sat on the log .\n" * 30


@pytest.fixture
def held(project):
    """The project, with a text to hold out."""
    project.text.with_name("held.txt").write_text(HELD_OUT, encoding="utf-8")
    return project


def ids_of(project, text):
    return Tokenizer.load(project.run.tokenizer_path).encode(text)


def test_the_held_out_tokens_stand_behind_the_others_and_are_exactly_what_is_evaluated(held):
    corpus = held.prepare(val_path="data/held.txt")
    train, val = ids_of(held, TEXT), ids_of(held, HELD_OUT)
    assert corpus.tokens[:].tolist() == train + val
    assert held.info()["held_out"]["count"] == len(val)
    assert held.info()["characters"] == len(TEXT) + len(HELD_OUT)
    batches = Batches(corpus.tokens, 2, 8, sampling="shuffled", seed=0, val_fraction=corpus.val_fraction)
    assert (batches.train_tokens, batches.val_tokens) == (len(train), len(val))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10**3, 10**9 + 7, 10**12])
def test_the_fraction_gives_back_the_number_of_tokens(held, count):
    corpus = held.prepare(val_path="data/held.txt")
    for val in {1, count // 3 or 1, count}:
        corpus.info["count"], corpus.info["held_out"]["count"] = count + 1, val
        assert math.floor((count + 1) * corpus.val_fraction) == val
        assert corpus.val_fraction < 1


def test_the_vocabulary_is_learned_without_the_held_out_text(held):
    held.prepare()
    alone = held.run.tokenizer_path.read_bytes()
    held.prepare(val_path="data/held.txt", reset=True)
    assert held.run.tokenizer_path.read_bytes() == alone


def test_a_run_remembers_its_held_out_text_and_checks_it(held):
    before = held.prepare(val_path="data/held.txt").tokens[:].tolist()
    assert held.prepare().tokens[:].tolist() == before
    assert held.prepare(val_path="data/held.txt", data_path="data/data.txt").tokens[:].tolist() == before
    assert held.notes == []
    held.run.tokens_path.unlink()
    assert held.prepare().tokens[:].tolist() == before
    assert held.prepare(reset=True).tokens[:].tolist() == before
    held.text.with_name("held.txt").write_text("something else", encoding="utf-8")
    assert "data/held.txt has changed since it was tokenized" in held.refused()
    held.text.with_name("other.txt").write_text("the dog sat", encoding="utf-8")
    assert "--val-path is data/other.txt, but run r was made from data/held.txt" in held.refused(
        val_path="data/other.txt"
    )


def test_tokens_without_a_held_out_text_get_none_later(held):
    held.prepare()
    assert "--val-path is data/held.txt, but the tokens of run r were made without it" in held.refused(
        val_path="data/held.txt"
    )


@pytest.mark.parametrize(
    ("val_path", "message"),
    [
        ("data", "is a part of both --data-path and --val-path"),
        ("nowhere.txt", "nowhere.txt does not exist"),
        ("no*.txt", "--val-path no*.txt matches no file"),
        (("data/held.txt", "data/held.txt"), "--val-path data/held.txt names data/held.txt a second time"),
        ("data/greek.txt", "characters of data/greek.txt are not in the vocabulary"),
    ],
)
def test_a_held_out_text_that_cannot_be_used_is_refused(held, val_path, message):
    held.text.with_name("greek.txt").write_text("ΑΒΓ ΔΕΖ the", encoding="utf-8")
    assert message in held.refused(val_path=val_path)


def test_training_evaluates_the_held_out_text_and_goes_on_with_it(hipgpt, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(HELD_OUT)
    model = ("--vocab-size", 60, "--dim", 8, "--heads", 2, "--ff", 8, "--layers", 1, "--seq", 8, "--batch", 2)
    named = ("--data-path", "a.txt", "--val-path", "b.txt", "--run-name", "r")
    out = hipgpt("train", *named, *model, "--device", "cpu", "--steps", 2, "--eval-every", 1).stdout
    held_out = len(Tokenizer.load(tmp_path / "checkpoints/r/tokenizer.json").encode(HELD_OUT))
    assert f", {held_out} of them held out" in out
    resumed = hipgpt("train", "--run-name", "r", "--resume", "--steps", 3, "--device", "cpu").stdout
    assert f", {held_out} of them held out" in resumed
    assert "were trained on before" not in resumed
    refused = hipgpt("train", *named[:4], *model, "--run-name", "s", "--val-fraction", 0.1, status=2).stderr
    assert "--val-fraction and --val-path both say what is held out" in refused
