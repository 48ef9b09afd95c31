"""Untrustworthy tokens, unusable texts, and texts that lose characters."""

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

import gpt.prepare.tokens
from gpt import provenance
from gpt.errors import UserError
from gpt.prepare import adopt
from gpt.run import Run
from gpt.tokenizer import Tokenizer
from tests.support.project import sha256

# Ids that the vocabulary lacks


def put_foreign_ids(made, ids):
    """Other tokens, and a tokens.json that vouches for them."""
    tokens, info = made.run.tokens_path, made.info()
    np.array(ids, "<u2").tofile(tokens)
    info["count"], info["tokens"] = len(ids), {**provenance.stamp(tokens), "sha256": sha256(tokens)}
    made.run.tokens_info_path.write_text(json.dumps(info))


@pytest.mark.parametrize("trained", [False, True])
def test_tokens_with_an_id_that_the_vocabulary_lacks_are_refused_when_they_are_first_opened(made, trained):
    if trained:
        made.add_checkpoint()
    size = Tokenizer.load(made.run.tokenizer_path).vocab_size
    put_foreign_ids(made, [0, 1] * 500 + [size] + [1] * 9)
    for _ in range(2):
        assert f"tokens.bin has the id {size}, but the tokenizer has {size} tokens" in made.refused()


def test_tokens_that_were_found_good_are_not_read_again(made, monkeypatch):
    info = made.info()
    del info["checked"], info["tokenizer"]["unicode"]  # the form that older versions wrote
    made.run.tokens_info_path.write_text(json.dumps(info))
    made.prepare()
    assert "checked" in made.info()
    monkeypatch.setattr(gpt.prepare.tokens, "_largest", None)
    made.prepare()


# Texts that cannot be used


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data.txt is empty"),
        (b" \n\t ", "data/data.txt has no word to train on, only white space and <|endoftext|> marks"),
        (b"caf\xe9 au lait", "data.txt is not UTF-8: byte 3 "),
        (None, "data.txt holds no text: name another folder"),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_text_that_cannot_be_used_leaves_everything_as_it_was(project, content, message, reset):
    if reset:
        project.prepare()
    project.text.unlink()
    project.text.mkdir() if content is None else project.text.write_bytes(content)
    assert message in project.refused(reset=reset)
    assert len(project.snapshot()) == (3 if reset else 0)


def test_a_text_without_any_known_character_is_refused(made):
    made.run.tokens_path.unlink()
    made.run.tokens_info_path.unlink()
    made.text.write_text("ΑΒΓ ΔΕΖ", encoding="utf-8")
    assert "no tokens" in made.refused()


def test_the_error_for_a_missing_default_text_names_a_source(project):
    project.text.unlink()
    error = project.refused(data_path="data/data.txt")
    assert "data/data.txt does not exist" in error
    assert "--data-path" in error
    assert "hipgpt fetch shakespeare" in error


def test_a_missing_text_of_the_user_is_named(project):
    assert "nowhere.txt does not exist" in project.refused(data_path="nowhere.txt")


def test_a_missing_text_that_is_needed_again_is_named(made):
    assert "nowhere.txt does not exist" in made.refused(data_path="nowhere.txt")
    made.text.unlink()
    made.run.tokens_path.unlink()
    assert "data/data.txt does not exist" in made.refused()
    assert made.notes == []


# Texts that lose characters


def test_characters_that_are_left_out_are_counted_and_named_with_the_most_frequent_first(project):
    project.text.write_text("aa bb " * 100 + "ж é é ж ж ЖЗИЙКЛМНО", encoding="utf-8")
    project.prepare(vocab_limit=5)
    (note,) = [note for note in project.notes if "loses" in note]
    assert "data/data.txt loses 14 of its 619 characters, which the vocabulary lacks: 'ж' (3), 'é' (2), " in note
    assert "'Н' (1) and one other" in note
    assert project.info()["dropped"] == 14
    project.prepare()
    assert "data/data.txt has lost 14 of its 619 characters" in project.notes[0]
    project.add_checkpoint()
    project.prepare()
    assert project.notes == [], "the note was printed when the training began"


def test_another_text_for_the_same_vocabulary_reports_its_lost_characters(made):
    made.run.tokens_path.unlink()
    made.run.tokens_info_path.unlink()
    made.text.write_text("the cat ЖЖЖ\n" * 9, encoding="utf-8")
    made.prepare()
    assert "loses 27 of its 108 characters" in made.notes[-1]
    assert "'Ж' (27)" in made.notes[-1]


def test_a_text_of_which_more_than_half_would_be_lost_is_refused_with_the_numbers(project):
    assert "1,120 of the 2,040 characters of data/data.txt are not in the vocabulary" in project.refused(vocab_limit=3)
    project.prepare(vocab_limit=60)
    info = project.info()
    project.run.tokens_info_path.write_text(json.dumps({**info, "dropped": 1021}))
    assert "1,021 of the 2,040 characters" in project.refused()
    project.add_checkpoint()
    project.prepare()


def test_json_is_learned_unchanged_with_a_note(project):
    project.text.write_text('{"text": "a b a b"}\n' * 50, encoding="utf-8")
    project.prepare()
    assert any("data/data.txt; for the texts in JSON" in note for note in project.notes)


def test_json_in_a_folder_is_learned_unchanged_with_a_note(project):
    project.text.with_suffix(".json").write_text('[{"text": "a b a b"}]')
    project.prepare(data_path="data")
    assert any("data/data.json; for the texts in JSON" in note for note in project.notes)


def test_json_and_tables_get_their_notes_if_they_are_compressed_too(project):
    project.text.write_bytes(gzip.compress(b'{"text": "a b a b"}\n' * 50))
    project.prepare()
    assert any("data/data.txt; for the texts in JSON" in note for note in project.notes)
    project.text.unlink()
    project.text.with_name("a.json.gz").write_bytes(gzip.compress(b'{"text": "a b a b"}\n' * 50))
    project.text.with_name("b.csv.gz").write_bytes(gzip.compress(b"text\na b\n" * 50))
    project.prepare(data_path="data", reset=True)
    assert any("data/a.json.gz; for the texts in JSON" in note for note in project.notes)
    assert any("with all columns: data/b.csv.gz; --text-field" in note for note in project.notes)


def test_a_field_that_no_file_has_is_refused_and_one_that_only_a_held_out_file_has_is_taken(project):
    said = project.refused(text_field="body")
    assert said.startswith("--text-field is body, but data/data.txt has no fields: leave it out, or give JSON Lines")
    project.text.with_name("held.jsonl").write_text('{"body": "the cat sat"}\n' * 9)
    corpus = project.prepare(text_field="body", val_path="data/held.jsonl")
    assert project.prepare(text_field="body", val_path="data/held.jsonl").info == corpus.info


def test_a_text_too_large_for_memory_gets_advice_that_fits(project, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Tokenizer, "train_bpe", full)
    error = project.refused()
    assert "out of memory while tokenizing data/data.txt" in error
    assert "--batch" not in error


@pytest.mark.parametrize("name", ["tokens.json", "tokens.bin", "tokenizer.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_unread(made, name):
    path = made.run.path / name
    path.unlink()
    os.mkfifo(path)
    try:
        with pytest.raises(UserError, match=f"{name} is "):
            made.prepare()
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("place", "name"), [("source", "tokenizer.json"), ("source", "tokens.bin"), ("run", "tokenizer.json")]
)
def test_a_device_in_the_place_of_a_file_is_not_copied_to_another_run(made, place, name):
    """`train --ckpt` takes over the files of the checkpoint's run. /dev/zero would fill the disk."""
    other = Run("other", Path("checkpoints"))
    other.path.mkdir()
    device = {"source": made.run, "run": other}[place].path / name
    device.unlink(missing_ok=True)
    device.symlink_to(os.devnull)
    with other.lock(), pytest.raises(UserError, match=f"{name} is a device, but must be a regular file"):
        adopt(made.run, other, with_tokens=True)
    assert not other.tokens_path.exists()


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_used_or_refused_in_one_line(made, seed):
    draw, refused = random.Random(seed), 0
    originals = {path: path.read_bytes() for path in made.files}
    odd = (b"", b"9" * 30, b"null", b"[", b'"', b"-1", b"1e999", b"NaN", b"\\ud800", b"{}", b"true", b"0.5", b"\xff")
    for _ in range(60):
        path, content = draw.choice(list(originals.items()))
        data = bytearray(content)
        for _ in range(draw.choice([1, 1, 3])):
            at = draw.randrange(len(data))
            data[at : at + draw.choice([0, 1, 4])] = draw.choice(odd)
        path.write_bytes(data)
        message = ""
        try:
            made.prepare()
            Tokenizer.load(made.run.tokenizer_path).encode("the cat")
        except UserError as error:
            message = str(error)
        refused += bool(message)
        assert "\n" not in message
        assert len(message) < 1000
        for original, before in originals.items():
            original.write_bytes(before)
    assert refused > 20
