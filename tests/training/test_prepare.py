"""Tokenizer and tokens on disk: made once, used unchanged, refused when they no longer belong together."""

import hashlib
import json
import os
import shutil
import tracemalloc
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import gpt.corpus.text_file
from gpt.config import TokenizerConfig
from gpt.corpus import Sources
from gpt.errors import UserError
from gpt.run import Run
from gpt.tokenizer import Tokenizer
from tests.support.project import TEXT, flip_a_byte, sha256, touch

# Making the files


def test_the_tokens_on_disk_are_the_encoded_text(project):
    corpus = project.prepare()
    ids = Tokenizer.load(project.run.tokenizer_path).encode(TEXT)
    assert isinstance(corpus.tokens[:].base.base, np.memmap)
    assert not corpus.tokens[:].flags.writeable
    assert corpus.tokens[:].dtype == np.uint16
    assert corpus.tokens[:].tolist() == ids
    assert project.run.tokens_path.read_bytes() == np.array(ids, "<u2").tobytes()
    assert corpus.tokenizer.decode(corpus.tokens[:14].tolist()).startswith("the cat sat on")
    assert project.notes == []


def test_tokens_json_describes_the_origin_of_the_tokens(project):
    corpus = project.prepare(vocab_limit=22)
    run, text, tokens = project.run, project.text, project.run.tokens_path
    assert corpus.info == project.info()
    assert corpus.info == {
        "dtype": "uint16",
        "count": tokens.stat().st_size // 2,
        "vocab_size": corpus.tokenizer.vocab_size,
        "characters": len(TEXT),
        "dropped": corpus.tokenizer.dropped,
        "text": {
            "path": "../../data/data.txt", "size": text.stat().st_size, "mtime_ns": text.stat().st_mtime_ns,
            "sha256": sha256(text),
        },
        "tokenizer": {
            "kind": "word", "vocab_limit": 22, "split": None, "special_tokens": [], "keep_newlines": False,
            "given": False, "sha256": sha256(run.tokenizer_path), "unicode": "16.0.0",
        },
        "tokens": {
            "size": tokens.stat().st_size, "mtime_ns": tokens.stat().st_mtime_ns, "sha256": sha256(tokens),
        },
        "checked": hashlib.sha256((sha256(tokens) + sha256(run.tokenizer_path)).encode()).hexdigest(),
    }  # fmt: skip
    assert corpus.info["dropped"] >= 40  # 22 tokens are 10 characters, and the text has more than that


def test_a_vocabulary_above_65536_needs_four_bytes_a_token(project):
    characters = "".join(chr(0x10000 + i) for i in range(32_768))  # two tokens each, and <|endoftext|>
    project.text.write_text(" ".join(characters), encoding="utf-8")
    corpus = project.prepare(vocab_limit=70_000)
    assert corpus.tokenizer.vocab_size == 65_537
    assert corpus.tokens[:].dtype == np.uint32
    assert corpus.tokens[:].max() == 65_536
    assert np.fromfile(project.run.tokens_path, "<u4").tolist() == corpus.tokens[:].tolist()


def test_memory_does_not_grow_with_the_text(project, monkeypatch):
    monkeypatch.setattr(Sources, "blocks", partialmethod(Sources.blocks, block_chars=1 << 14))
    monkeypatch.setattr(gpt.corpus.text_file, "_BUFFER", 1 << 14)
    peaks = []
    for times in (200, 800):
        project.text.write_text(TEXT * times, encoding="utf-8")
        tracemalloc.start()
        project.prepare(reset=times > 200)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 600 * len(TEXT) / 10  # the text would add 600 * len(TEXT), its ids half


def test_progress_runs_to_its_end_for_training_and_for_encoding(project):
    seen = {}

    @contextmanager
    def progress(what, total):
        seen[what] = [total]
        yield seen[what].append

    project.prepare(progress=progress)
    assert list(seen) == ["Training tokenizer", "Encoding"]
    for total, *completed in seen.values():
        assert completed == sorted(completed)
        assert 0 < completed[-1] <= total
    assert seen["Encoding"][-1] == project.text.stat().st_size


def test_a_tokenizer_with_little_room_for_merges_is_noted(project):
    project.text.write_text(TEXT.replace("\n", " "), encoding="utf-8")
    project.prepare(vocab_limit=30)
    assert len(project.notes) == 1
    assert "--vocab-size" in project.notes[0]


@pytest.mark.parametrize(
    ("kind", "text", "noted"), [("word", TEXT, True), ("byte", TEXT, False), ("word", "a b " * 400 + "\n", False)]
)
def test_a_tokenizer_that_keeps_no_line_breaks_says_so_if_the_text_has_some(project, kind, text, noted):
    project.text.write_text(text, encoding="utf-8")
    project.prepare(kind=kind, vocab_limit=300)
    assert len(project.lossy) == noted
    assert all("--tokenizer byte" in note for note in project.lossy)
    project.prepare()
    assert not project.lossy, "only when the tokenizer is made"


# Using existing files


def test_matching_files_are_used_without_reading_text_or_tokens(made, idle):
    before = made.snapshot()
    with idle():
        corpus = made.prepare()
    assert made.snapshot() == before
    assert corpus.tokens[:].tolist() == corpus.tokenizer.encode(TEXT)
    assert made.notes == []


def test_stored_settings_are_used_unless_others_are_given(project, idle):
    other = project.text.with_name("other.txt")
    other.write_text(TEXT.upper(), encoding="utf-8")
    project.prepare(data_path="data/other.txt", vocab_limit=300, kind="byte")
    with idle():
        assert project.prepare().info["tokenizer"]["kind"] == "byte"
        project.prepare(data_path="data/other.txt", vocab_limit=300, kind="byte")
    other.write_text(TEXT.title(), encoding="utf-8")
    corpus = project.prepare(reset=True)
    assert corpus.tokenizer.decode(corpus.tokens[:].tolist()) == TEXT.title()
    assert corpus.info["tokenizer"]["vocab_limit"] == 300


@pytest.mark.parametrize("file", ["text", "tokens"])
def test_a_touched_file_is_digested_once_and_then_believed(made, idle, file):
    touch(made.text if file == "text" else made.run.tokens_path)
    made.prepare()
    assert made.notes == []
    with idle():
        made.prepare()
    made.text.write_text(TEXT + "more", encoding="utf-8")
    assert "data.txt has changed" in made.refused()


def test_a_deleted_text_still_trains(made, idle):
    made.text.unlink()
    with idle():
        assert len(made.prepare(data_path="data/data.txt").tokens)
    assert made.notes == ["Note: data/data.txt is gone: going on with the tokens made from it"]


@pytest.mark.parametrize("lost", [["tokens.bin"], ["tokens.json"], ["tokens.bin", "tokens.json"]])
@pytest.mark.parametrize("trained", [False, True])
def test_lost_tokens_are_encoded_again_with_the_same_tokenizer(made, lost, trained, monkeypatch):
    if trained:
        made.add_checkpoint()
    before = made.snapshot()
    for name in lost:
        (made.run.path / name).unlink()
    monkeypatch.delattr(Tokenizer, "train_bpe")
    made.prepare(data_path="data/data.txt" if trained and "tokens.json" in lost else None)
    assert len(made.notes) == 1
    assert "encoding data/data.txt" in made.notes[0]
    assert made.snapshot()["tokenizer.json"] == before["tokenizer.json"]
    assert made.snapshot()["tokens.bin"] == before["tokens.bin"]
    made.prepare()
    assert made.notes == []


def test_a_trained_run_is_not_given_another_text_because_its_own_was_forgotten(made):
    made.add_checkpoint()
    made.run.tokens_info_path.unlink()
    before = made.snapshot()
    with pytest.raises(UserError, match=r"tokens\.json is missing or damaged.* --data-path"):
        made.prepare()
    assert made.snapshot() == before


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"text": 1}', "\0", "{"])
def test_a_damaged_tokens_json_is_treated_as_missing(made, damage):
    made.run.tokens_info_path.write_text(damage)
    made.prepare()
    assert "tokens.json is missing or damaged" in made.notes[0]
    assert made.info()["text"]["sha256"] == sha256(made.text)


def test_a_count_that_the_size_of_tokens_bin_denies_is_not_believed(made):
    made.run.tokens_info_path.write_text(json.dumps({**made.info(), "count": made.info()["count"] + 1}))
    assert len(made.prepare().tokens) == made.run.tokens_path.stat().st_size // 2
    assert "tokens.json is missing or damaged" in made.notes[0]


def test_a_lost_tokenizer_is_made_anew_with_the_stored_settings(project):
    before = project.prepare(vocab_limit=77).info
    project.run.tokenizer_path.unlink()
    assert project.prepare().info["tokenizer"] == before["tokenizer"]
    assert len(project.notes) == 1
    assert "tokenizer.json is missing" in project.notes[0]


def test_a_tokenizer_of_the_user_is_kept_as_it_is(project):
    project.prepare(vocab_limit=50)
    tokenizer = tokenizers.Tokenizer.from_file(str(project.run.tokenizer_path))
    shutil.rmtree(project.run.path)
    project.run.path.mkdir()
    tokenizer.save(str(project.run.tokenizer_path), pretty=False)
    own = project.run.tokenizer_path.read_bytes()
    corpus = project.prepare()
    assert project.run.tokenizer_path.read_bytes() == own
    assert corpus.tokens[:].tolist() == tokenizer.encode(TEXT).ids
    assert len(project.notes) == 1
    assert "tokenizer.json" in project.notes[0]
    project.run.tokens_info_path.unlink()
    assert "--tokenizer is byte, but checkpoints/r/tokenizer.json has word" in project.refused(kind="byte")


@pytest.mark.parametrize(("text", "noted"), [("a b\nc\n\nd e\n", False), ("a b\n  c\n", True), ("a  b\nc\n", True)])
def test_a_tokenizer_that_keeps_line_breaks_says_so_if_it_loses_other_white_space(project, text, noted):
    project.text.write_text(text * 9, encoding="utf-8")
    project.prepare(keep_newlines=True)
    assert any("no indentation and no repeated spaces" in note for note in project.notes) == noted


# A tokenizer from elsewhere


@pytest.fixture
def elsewhere(tmp_path):
    """A tokenizer.json with ids in an order that is not ours."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator([TEXT], trainer)
    theirs.add_special_tokens(["<|endoftext|>"])
    theirs.save(str(tmp_path / "elsewhere.json"))
    return tmp_path / "elsewhere.json"


def test_a_tokenizer_from_elsewhere_becomes_the_runs_and_stays_it(project, elsewhere):
    corpus = project.prepare(kind=str(elsewhere))
    theirs = tokenizers.Tokenizer.from_file(str(elsewhere))
    assert corpus.tokens[:].tolist() == theirs.encode(TEXT).ids
    assert corpus.info["vocab_size"] == theirs.get_vocab_size()
    assert corpus.info["tokenizer"]["given"]
    assert tokenizers.Tokenizer.from_file(str(project.run.tokenizer_path)).encode(TEXT).ids == theirs.encode(TEXT).ids
    assert project.prepare().info == corpus.info
    assert project.prepare(kind=str(elsewhere)).info == corpus.info
    assert project.prepare(reset=True).tokenizer == corpus.tokenizer
    assert project.prepare(reset=True).info["tokenizer"]["given"]
    project.run.tokens_info_path.unlink()
    assert project.prepare().tokens[:].tolist() == corpus.tokens[:].tolist()


def test_another_tokenizer_than_the_runs_is_refused_and_so_is_a_setting_that_one_cannot_have(project, elsewhere):
    assert "--vocab-size goes with a tokenizer that is learned" in project.refused(kind=str(elsewhere), vocab_limit=60)
    assert "--tokenizer is 'nowhere.json', but must be one of word, byte" in project.refused(kind="nowhere.json")
    project.prepare()
    assert "tokenizer.json is another one: leave it out, or" in project.refused(kind=str(elsewhere))


def test_a_lost_tokenizer_that_was_given_is_not_learned_anew(project, elsewhere):
    project.prepare(kind=str(elsewhere))
    project.run.tokenizer_path.unlink()
    assert "is missing, and was given: put it back, or give --tokenizer" in project.refused()
    assert project.prepare(kind=str(elsewhere)).info["tokenizer"]["given"]


def test_choices_for_a_tokenizer_are_recorded_and_kept(project):
    chosen = {"kind": "byte", "vocab_limit": 300, "split": "gpt4", "special_tokens": ("<|user|>",)}
    project.prepare(**chosen)
    assert project.prepare(reset=True).tokenizer.config == TokenizerConfig(**chosen)
    assert "--split is qwen2, but" in project.refused(split="qwen2")
    project.run.tokenizer_path.unlink()
    kept = project.prepare(kind="word").tokenizer
    assert (kept.kind, kept.special_tokens, kept.keep_newlines) == ("word", ("<|user|>",), False)
    assert project.prepare(reset=True, keep_newlines=True).tokenizer.keep_newlines


# Files that no longer match are refused


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: flip_a_byte(p.text), "data/data.txt has changed since it was tokenized (sha256 "),
        (lambda p: os.truncate(p.text, 9), "data/data.txt has changed since it was tokenized (2080 bytes then, 9 now"),
        (lambda p: flip_a_byte(p.run.tokens_path), "tokens.bin is not what was written (sha256 "),
        (lambda p: os.truncate(p.run.tokens_path, 100), " bytes then, 100 now)"),
        (lambda p: Tokenizer(99).save(p.run.tokenizer_path), "tokenizer.json is not the tokenizer that tokens.bin was"),
        (lambda p: p.run.tokenizer_path.write_text("{}"), "tokenizer.json is not the tokenizer that tokens.bin was"),
    ],
)
def test_a_changed_file_is_named_with_the_old_and_the_new_state_and_a_way_out(made, change, message, trained):
    if trained:
        made.add_checkpoint()
    change(made)
    error = made.refused()
    assert message in error
    assert " then, " in error
    assert " now): " in error
    if "tokens.bin is not" in error:
        assert "delete it to encode data/data.txt again" in error
    else:
        assert ("--reset" in error, "--run-name" in error) == (not trained, trained)


def test_the_suggested_ways_out_work(made):
    flip_a_byte(made.run.tokens_path)
    made.refused()
    made.run.tokens_path.unlink()
    assert made.prepare().tokens[:].tolist() == made.prepare().tokenizer.encode(TEXT)
    made.text.write_text("another cat sat here ." * 9, encoding="utf-8")
    made.refused()
    corpus = made.prepare(reset=True)
    assert corpus.tokenizer.decode(corpus.tokens[:12].tolist()).startswith("another cat")
    assert corpus.tokens[:].tolist() == made.prepare().tokens[:].tolist()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ({"vocab_limit": 61}, "--vocab-size is 61, but checkpoints/r/tokenizer.json has 60: leave it out, or "),
        ({"kind": "byte"}, "--tokenizer is byte, but checkpoints/r/tokenizer.json has word: leave it out, or "),
    ],
)
def test_a_flag_that_contradicts_the_tokenizer_is_refused(made, flag, message, trained):
    if trained:
        made.add_checkpoint()
    error = made.refused(**flag)
    assert message in error
    assert ("--reset" in error, "--run-name" in error) == (not trained, trained)


def test_a_checkpoint_keeps_its_tokenizer(made):
    made.add_checkpoint()
    assert "take another --run-name" in made.refused(reset=True)
    made.run.tokenizer_path.unlink()
    error = made.refused()
    assert "tokenizer.json is missing" in error
    assert "--reset" not in error


# The location of the text


def test_the_same_text_elsewhere_is_the_same_text(made, idle):
    copy = made.text.with_name("copy.txt")
    shutil.copy(made.text, copy)
    made.prepare(data_path="data/copy.txt")
    assert made.notes == []
    assert made.info()["text"]["path"] == "../../data/copy.txt"
    with idle():
        made.prepare(data_path=str(copy))


@pytest.mark.parametrize("text", [TEXT + "x", TEXT.replace("cat", "cow")], ids=["longer", "as long"])
def test_another_text_is_refused_naming_both(made, text):
    other = made.text.with_name("other.txt")
    other.write_text(text, encoding="utf-8")
    stat = made.text.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    error = made.refused(data_path="data/other.txt")
    assert "--data-path is data/other.txt, but run r was made from data/data.txt" in error
    assert "--reset" in error


def test_a_project_can_move_and_be_used_from_anywhere(made, monkeypatch, idle, tmp_path):
    shutil.move("data", "project/data")
    shutil.move("checkpoints", "project/checkpoints")
    made.run = Run("r", tmp_path / "project" / "checkpoints")
    monkeypatch.chdir("/")
    with idle():
        made.prepare()
        made.prepare(data_path=str(tmp_path / "project" / "data" / "data.txt"))
    assert made.notes == []


def test_a_text_outside_the_project_is_found_after_the_project_moves(project, tmp_path_factory, idle):
    text = tmp_path_factory.mktemp("elsewhere") / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    project.prepare(data_path=str(text))
    shutil.move("checkpoints", "deeper/down/checkpoints")
    project.run = Run("r", Path("deeper/down/checkpoints"))
    with idle():
        project.prepare()
    assert project.notes == []
