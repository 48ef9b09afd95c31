"""Preparing a text that changes, interrupted or killed preparations, and files deleted, cut or flipped afterward."""

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

import gpt.encode
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tests.support.project import TEXT, flip_a_byte, touch


def test_a_text_that_changes_while_it_is_read_is_refused(made, monkeypatch):
    encode_blocks = Tokenizer.encode_blocks

    def encode_slowly(self, blocks):
        yield from encode_blocks(self, blocks)
        with open(made.text, "a") as file:
            file.write("more")

    monkeypatch.setattr(Tokenizer, "encode_blocks", encode_slowly)
    assert "data.txt changed while it was being read" in made.refused(reset=True)


@pytest.mark.parametrize("method", ["train_bpe", "encode_blocks", "save"])
def test_a_failing_reset_leaves_the_old_files_usable(made, idle, monkeypatch, method):
    before = made.snapshot()

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, method, fail)
        with pytest.raises(KeyboardInterrupt):
            made.prepare(reset=True, vocab_limit=70)
    assert made.snapshot() == before
    with idle():
        made.prepare()


@pytest.mark.parametrize("moment", ["before it counts", 0, 1, 2, "afterwards"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_kill_leaves_the_old_files_or_the_new_ones_and_never_some_of_both(project, monkeypatch, moment, reset):
    old = TEXT
    if reset:
        project.prepare()
        project.text.write_text(TEXT.replace("cat", "cow"), encoding="utf-8")
    new = project.text.read_text(encoding="utf-8")

    def dying(function, left):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    def in_its_place(source, target):  # the renames after the decisive one
        has_counted = (Path(target).parent / ".tokenized").is_dir()
        return replace_counted(source, target) if has_counted else replace(source, target)

    replace, replace_counted = os.replace, dying(os.replace, moment if isinstance(moment, int) else 99)
    if (child := os.fork()) == 0:
        monkeypatch.setattr(os, "replace", in_its_place)
        if moment == "before it counts":
            monkeypatch.setattr(os, "rename", dying(os.rename, 0))
        if moment == "afterwards":
            monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        project.prepare(reset=reset)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if reset and moment == "before it counts":
        assert "--reset" in project.refused(), "the old files are for the old text"
        project.text.write_text(old, encoding="utf-8")
        new = old
    corpus = project.prepare()
    assert corpus.tokens[:].tolist() == Tokenizer.load(project.run.tokenizer_path).encode(new)
    assert project.snapshot().keys() == {path.name for path in project.files}
    assert project.notes == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("reset", [False, True])
def test_a_learned_vocabulary_survives_an_interrupted_encoding(project, monkeypatch, failure, reset):
    if reset:
        project.prepare()

    def fail(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_blocks", fail)
        with pytest.raises(type(failure)):
            project.prepare(reset=reset, vocab_limit=50)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "train_bpe", lambda *_: pytest.fail("the vocabulary is learned a second time"))
        corpus = project.prepare(reset=reset, vocab_limit=50)
    assert "learned from this text before" in project.notes[0]
    assert corpus.tokenizer.vocab_limit == 50
    assert project.snapshot().keys() == {path.name for path in project.files}
    assert not project.run.staged_path.exists()


@pytest.mark.parametrize("change", ["settings", "text"])
def test_a_vocabulary_learned_from_something_else_is_learned_anew(project, monkeypatch, change):
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_blocks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            project.prepare()
    if change == "text":
        project.text.write_text(TEXT.replace("cat", "cow"), encoding="utf-8")
    corpus = project.prepare(vocab_limit=50 if change == "settings" else None)
    assert not any("learned" in note for note in project.notes)
    assert corpus.tokens[:].tolist() == corpus.tokenizer.encode(project.text.read_text(encoding="utf-8"))
    assert corpus.tokenizer.vocab_size <= (50 if change == "settings" else 60)


def test_random_accidents_never_lead_to_stale_tokens(made):
    """Delete, cut, flip or touch any of the files in any order: the tokens are right, or there are none."""
    chance = random.Random(0)
    pristine = made.snapshot()
    for _ in range(60):
        for name, data in pristine.items():
            (made.run.path / name).write_bytes(data)
        for path in chance.sample(made.files, chance.randint(1, 3)):
            accident = chance.choice([Path.unlink, flip_a_byte, touch, lambda p: os.truncate(p, 7)])
            accident(path)
        try:
            corpus = made.prepare()
        except UserError:
            continue
        assert corpus.tokens[:].tolist() == Tokenizer.load(made.run.tokenizer_path).encode(TEXT)


@pytest.fixture
def small_pieces(monkeypatch):
    """Even a short text has many pieces, and how far it has got is saved behind each."""
    monkeypatch.setattr(gpt.encode, "_PIECE", 100)
    monkeypatch.setattr(gpt.encode, "_LARGEST", 100)


def dying_in_piece(monkeypatch, number, end):
    """Let the encoding of piece `number`, counted from 0, end in the middle by calling `end`."""
    encode_blocks, begun = Tokenizer.encode_blocks, []

    def encode(self, blocks):
        begun.append(None)
        for ids in encode_blocks(self, blocks):
            if len(begun) > number:
                end()
            yield ids

    monkeypatch.setattr(Tokenizer, "encode_blocks", encode)
    return begun


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("kept", [False, True], ids=["new tokenizer", "kept tokenizer"])
def test_an_encoding_that_was_killed_goes_on_behind_its_last_whole_piece(
    project, monkeypatch, small_pieces, folder, kept
):
    names = "data/data.txt"
    if folder:
        names = "data"
        for number in range(30):
            project.text.with_name(f"{number}.txt").write_text(TEXT[: 40 + number] + "ж", encoding="utf-8")
    project.prepare(data_path=names)
    whole, info = project.snapshot(), project.info()
    for path in project.files[1:] if kept else project.files:
        path.unlink()
    if (child := os.fork()) == 0:
        dying_in_piece(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGKILL))
        project.prepare(data_path=names)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with open(project.run.staged_path / "tokens.bin", "ab") as file:
        file.write(b"half of a piece")
    pieces = dying_in_piece(monkeypatch, 10**9, None)
    project.prepare(data_path=names)
    assert any("were there from an interrupted command" in note for note in project.notes)
    assert len(pieces) == len(find([names]).sources.pieces(100, 1)) - 7
    assert project.snapshot() == {**whole, "tokens.json": project.run.tokens_info_path.read_bytes()}
    assert {**project.info(), "tokens": None} == {**info, "tokens": None}
    assert not project.run.staged_path.exists()


def test_an_encoding_that_goes_on_has_counted_the_documents_without_text_before(project, monkeypatch, small_pieces):
    records = '{"text": "the cat"}\n' * 20 + '{"text": null}\n{"text": "sat"}\n' * 40
    project.text.with_suffix(".jsonl").write_text(records)
    named = {"data_path": "data/data.jsonl", "kind": "byte", "vocab_limit": 300}
    if (child := os.fork()) == 0:
        dying_in_piece(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGKILL))
        project.prepare(**named)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    project.prepare(**named)
    assert any("were there from an interrupted command" in note for note in project.notes)
    said = "Note: 40 documents have no text and are left out, the first in data/data.jsonl, line 21"
    assert said in project.notes


@pytest.mark.parametrize("change", ["text", "tokens", "journal"])
def test_an_interrupted_encoding_is_of_no_use_to_another_text_or_when_it_is_damaged(
    project, monkeypatch, small_pieces, change
):
    project.prepare()
    before = project.run.tokens_path.read_bytes()
    project.run.tokens_path.unlink()
    with monkeypatch.context() as patch:
        dying_in_piece(patch, 5, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            project.prepare()
    if change == "text":
        touch(project.text)
    elif change == "tokens":
        flip_a_byte(project.run.staged_path / "tokens.bin")
    else:
        (project.run.staged_path / "tokens.bin.json").write_text('{"of": 5}')
    project.prepare()
    assert project.run.tokens_path.read_bytes() == before
    assert not any("interrupted" in note for note in project.notes)


def test_a_held_out_text_goes_on_too(project, monkeypatch, small_pieces):
    project.text.with_name("held.txt").write_text(TEXT[:500], encoding="utf-8")
    project.prepare(val_path="data/held.txt")
    before = project.run.tokens_path.read_bytes()
    project.run.tokens_path.unlink()
    pieces = len(find(["data/data.txt"]).sources.pieces(100, 1))
    with monkeypatch.context() as patch:
        dying_in_piece(patch, pieces + 2, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            project.prepare()
    pieces = dying_in_piece(monkeypatch, 10**9, None)
    project.prepare()
    of_the_first_text = 1  # an empty one
    assert len(pieces) == of_the_first_text + len(find(["data/held.txt"]).sources.pieces(100, 1)) - 2
    assert project.run.tokens_path.read_bytes() == before
