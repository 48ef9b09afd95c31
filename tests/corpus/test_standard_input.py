"""`--data-path -` copies standard input into the run, and the copy is the text."""

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpt.tokenizer import Tokenizer
from tests.support.project import TEXT


@pytest.fixture
def piped(project, monkeypatch):
    """Function that prepares the text that it pipes into the command; with `refused`, it expects a refusal."""

    def prepare(data, refused=False, **flags):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        return (project.refused if refused else project.prepare)(data_path="-", **flags)

    return prepare


def test_standard_input_has_the_ids_of_a_file_and_is_not_needed_again(project, piped):
    from_file = project.prepare().tokens[:].tolist()
    corpus = piped(TEXT.encode(), reset=True)
    assert corpus.tokens[:].tolist() == from_file
    (copy,) = project.run.input_copies()
    assert copy.read_text(encoding="utf-8") == TEXT
    assert project.info()["text"]["path"] == copy.name
    project.run.tokens_path.unlink()
    assert project.prepare().tokens[:].tolist() == from_file


def test_the_same_input_is_the_same_text_and_another_one_is_refused_and_not_kept(project, piped):
    piped(TEXT.encode())
    piped(TEXT.encode())
    assert project.notes == []
    assert "and they differ" in piped(b"another text", refused=True)
    (copy,) = project.run.input_copies()
    piped(b"another text here " * 50, reset=True)
    (other,) = project.run.input_copies()
    assert other != copy


def test_standard_input_is_json_lines_if_a_field_is_named(project, piped):
    corpus = piped(b'{"body": "the cat"}\n{"body": "a dog"}\n' * 20, text_field="body")
    text = "the cat<|endoftext|>a dog<|endoftext|>" * 20
    assert corpus.tokens[:].tolist() == Tokenizer.load(project.run.tokenizer_path).encode(text)


TALK = {"messages": [{"role": "user", "content": "the dog ?"}, {"role": "assistant", "content": "the cat"}]}
LINES = json.dumps(TALK).encode() + b"\n" + b'{"prompt": "the dog ?", "completion": "the cat"}\n'


@pytest.mark.parametrize(
    "data",
    [
        LINES * 20, b"\xef\xbb\xbf" + LINES * 20, (LINES * 20).decode().encode("utf-16"), gzip.compress(LINES * 20),
        json.dumps([TALK] * 40).encode(),
    ],
)  # fmt: skip
def test_conversations_are_recognized_by_their_content(project, piped, data):
    corpus = piped(data, kind="byte", vocab_limit=300)
    text = "<|user|>the dog ?<|assistant|>the cat<|endoftext|>" * 40
    assert corpus.tokens[:].tolist() == Tokenizer.load(project.run.tokenizer_path).encode(text)
    assert project.info()["counted"]["count"] == np.count_nonzero(corpus.counted) < len(corpus.tokens)


@pytest.mark.parametrize(
    ("data", "suffix", "text"),
    [
        (b'{"text": "the cat"}\n' * 40, ".jsonl", "the cat<|endoftext|>" * 40),
        (b'{"body": "the cat"}\n' * 40, ".txt", None),
        (b'[{"body": "the cat"}]\n', ".json", None),
        (b'{"text": "the cat"} is JSON .\n' * 40, ".txt", None),
    ],
)
def test_objects_with_a_text_are_json_lines_and_others_are_learned_as_they_stand(project, piped, data, suffix, text):
    corpus = piped(data, kind="byte", vocab_limit=300)
    (copy,) = project.run.input_copies()
    assert copy.suffix == suffix
    assert Tokenizer.load(project.run.tokenizer_path).decode(corpus.tokens[:].tolist()) == (text or data.decode())


def test_damaged_compression_is_named(piped):
    assert "is damaged or cut short (gzip: " in piped(gzip.compress(LINES)[:-9], refused=True)


def test_where_standard_input_is_not_copied_it_is_refused(project):
    Tokenizer(kind="byte").save("tokenizer.json")
    for flags in ({"data_path": "data/data.txt", "val_path": "-"}, {"tokens": "-", "kind": "tokenizer.json"}):
        assert " is -, but only --data-path of train and tokenize copies standard" in project.refused(**flags)
    Path("-").write_text("a file of this name")
    assert project.prepare(data_path="data/data.txt", val_path="-").info["held_out"]


def test_input_that_cannot_be_used_leaves_nothing(project, piped):
    assert "nothing comes from standard input" in piped(b"", refused=True)
    assert "is not UTF-8: byte 3 (0xff) in line 1" in piped(b"abc\xff", refused=True)
    assert not project.run.path.exists()
