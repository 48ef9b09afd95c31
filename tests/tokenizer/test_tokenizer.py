"""gpt/tokenizer/tokenizer.py: learning, encoding, decoding, and what is refused."""

import base64
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt.tokenizer.encoding
from gpt.corpus import read_blocks
from gpt.errors import UserError
from gpt.tokenizer import END_OF_TEXT, Tokenizer
from gpt.tokenizer.text import blocks_of
from tests.support import ROOT
from tests.tokenizer.samples import CORPUS, both_kinds, every_kind, of_each, texts, trained


@pytest.mark.parametrize("granted", [0, 1])
def test_without_more_threads_the_ids_are_the_same(monkeypatch, tmp_path, granted):
    (tmp_path / "text.txt").write_text(CORPUS * 30, encoding="utf-8")
    blocks = list(read_blocks(tmp_path / "text.txt", 500))
    tokenizer = trained("word")
    expected = [ids.tolist() for ids in tokenizer.encode_blocks(blocks)]
    start, started = threading.Thread.start, []

    def refuse(thread):
        if len(started) == granted:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    again = trained("word")
    assert [ids.tolist() for ids in again.encode_blocks(blocks)] == expected
    assert len(started) == granted


# Decoding


@given(text=texts)
def test_byte_tokens_decode_to_the_same_text(pairs, text):
    ours = pairs["byte"][0]
    assert ours.decode(ours.encode(text)) == text
    assert ours.dropped == 0


@pytest.fixture(scope="module")
def odd_words():
    return trained("word", "x</w>y x</w>y </w></w> <w/>é q日x " * 2, 60)


@given(words=st.lists(st.text(st.sampled_from("x</w>yéq日"), min_size=1)))
def test_word_tokens_decode_to_every_word_over_the_training_characters(odd_words, words):
    ours = odd_words
    assert ours.decode(ours.encode(" \n".join(words))) == " ".join(words)
    assert ours.dropped == 0


@every_kind
@of_each
@given(data=st.data())
def test_pieces_that_arrive_one_by_one_join_to_the_whole(pairs, kind, data):
    ours = pairs[kind][0]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    decoder = ours.decoder()
    assert "".join([*map(decoder.feed, ids), decoder.finish()]) == ours.decode(ids)


def test_a_decoder_gives_no_half_character_and_no_space_before_its_time():
    by_byte = Tokenizer(257, "byte")
    decoder = by_byte.decoder()
    assert [decoder.feed(id) for id in by_byte.encode("日a")] == ["", "", "日", "a"]
    assert decoder.feed(by_byte.encode("日")[0]) == ""
    assert decoder.finish() == "\ufffd"
    by_word = trained("word", "ab ab")
    decoder = by_word.decoder()
    assert [decoder.feed(id) for id in by_word.encode("ab ab")] == ["ab", " ab"]
    assert decoder.finish() == ""


@every_kind
@of_each
@given(text=texts, block_chars=st.integers(1, 50))
def test_the_ids_of_a_file_do_not_depend_on_the_block_size(pairs, tmp_path_factory, kind, text, block_chars):
    ours = pairs[kind][0]
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    letters = "ab c" * (1 + text.count("\0"))  # a text with many zeros counts as UTF-16
    path.write_bytes(f"\ufeff{letters}{text}".encode())
    arrays = list(ours.encode_blocks(read_blocks(path, block_chars)))
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    ids = np.concatenate(arrays)
    assert ids.tolist() == ours.encode(path.read_bytes().decode())
    if ours.kind == "byte":
        assert ours.decode(ids).encode() == path.read_bytes()


LINES = st.lists(
    st.sampled_from([*"aZé日ß19½-_'|<>/=+.。\u0301", "'s", "'RE", "12", "<user>", "<|user|>", "<|a1b|>", "\n"])
)


@every_kind
@of_each
@given(text=LINES.map("".join), block_chars=st.integers(1, 20))
def test_the_ids_of_a_line_do_not_depend_on_where_it_is_cut(pairs, kind, text, block_chars):
    ours = pairs[kind][0].with_special_tokens(["<|a1b|>"])
    blocks = list(blocks_of([text], block_chars, ours.last_cut))
    assert "".join(blocks) == text
    assert [id for block in blocks for id in ours.encode(block)] == ours.encode(text)
    assert [ours.unknown(text)] == [sum(map(ours.unknown, blocks), Counter())]


@every_kind
def test_a_line_of_base64_or_json_comes_in_blocks_but_one_word_in_one(pairs, kind):
    for line in (base64.b64encode(random.Random(1).randbytes(3000)).decode(), '{"key":["value",""]},' * 200):
        blocks = list(blocks_of([line], 100, pairs[kind][0].last_cut))
        assert max(map(len, blocks)) < 300 if pairs[kind][0].kind != "word" else blocks == [line]


@every_kind
@pytest.mark.parametrize("block_chars", [1, 7, 64])
def test_training_does_not_depend_on_the_block_size(tmp_path, kind, block_chars):
    (tmp_path / "corpus.txt").write_bytes(CORPUS.encode())
    in_blocks = trained(kind, read_blocks(tmp_path / "corpus.txt", block_chars))
    in_blocks.save(tmp_path / "in_blocks.json")
    trained(kind).save(tmp_path / "whole.json")
    assert (tmp_path / "in_blocks.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


@both_kinds
def test_words_at_the_seams_of_integers_are_told_apart(kind):
    ours = trained(kind, "x y xx yy", 300)
    words = ["x" * (length - 1) + last for length in (1, 7, 8, 15, 16, 23, 24, 30, 31, 32, 63) for last in "xy"]
    expected = [trained(kind, "x y xx yy", 300).encode(f" {word}") for word in words]
    assert ours.encode("".join(f" {word}" for word in words)) == list(chain.from_iterable(expected))
    assert [ours.encode(f" {word}") for word in words] == expected
    assert len(set(map(tuple, expected))) == len(words)


@both_kinds
def test_training_does_not_depend_on_the_hash_seed(tmp_path, kind):
    program = (
        "import sys; from gpt.tokenizer import Tokenizer; t = Tokenizer(400, sys.argv[1])\n"
        "t.train_bpe(sys.stdin.buffer.read().decode()); t.save(sys.argv[2])"
    )
    files = [tmp_path / "0", tmp_path / "1"]
    for file in files:
        environment = {**os.environ, "PYTHONHASHSEED": file.name, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, kind, str(file)]
        subprocess.run(command, input=CORPUS.encode(), env=environment, check=True)
    assert files[0].read_bytes() == files[1].read_bytes()


@both_kinds
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_tables_are_bounded_and_neither_they_nor_threads_change_anything(monkeypatch, tmp_path, kind, threads):
    (tmp_path / "corpus.txt").write_bytes(CORPUS.encode())
    whole = trained(kind)
    monkeypatch.setattr(gpt.tokenizer.encoding, "_TABLE_LIMIT", 10)
    monkeypatch.setattr(gpt.tokenizer.encoding, "_GROUP", 2)
    monkeypatch.setattr(gpt.tokenizer.encoding, "available_threads", lambda: threads)
    bounded = trained(kind, read_blocks(tmp_path / "corpus.txt", 8))
    assert bounded == whole
    ids, sizes = [], []
    for block in bounded.encode_blocks(read_blocks(tmp_path / "corpus.txt", 8)):
        ids += block.tolist()
        sizes.append(len(bounded._encoder._chunks))
    assert ids == whole.encode(CORPUS)
    assert max(sizes) < 10 + 8 * 2 * threads  # one group more than the limit, because a string has at least one byte
    assert sizes != sorted(sizes)  # it has been cleared


@both_kinds
def test_after_an_interruption_the_same_tokenizer_encodes_as_ever(monkeypatch, kind):
    ours, fresh = trained(kind), trained(kind)

    def interrupted(words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ours._encoder._words, "_encode_new", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.encode("the cat")
    for text in ("a mat", "the cat"):
        assert ours.encode(text) == fresh.encode(text)


@both_kinds
@pytest.mark.parametrize("error", [ValueError, UserError])
def test_an_error_in_a_later_group_leaves_no_thread_behind_and_a_tokenizer_that_works(monkeypatch, kind, error):
    monkeypatch.setattr(gpt.tokenizer.encoding, "_GROUP", 2)
    ours, expected, threads = trained(kind), trained(kind).encode(CORPUS), threading.active_count()

    def blocks():
        yield from ["the cat"] * 2 * gpt.tokenizer.encoding._MAX_THREADS
        if error is UserError:
            raise UserError("the file ends in the middle of a character")
        yield "a\ud800"

    with pytest.raises(error):
        list(ours.encode_blocks(blocks()))
    assert threading.active_count() == threads
    assert ours.encode(CORPUS) == expected


# The vocabulary


def test_the_word_vocabulary_is_the_mark_then_characters_by_count_then_merges():
    ours = trained("word", "ab ab b", 8)
    assert [ours.piece(id) for id in range(ours.vocab_size)] == [END_OF_TEXT, "b", "b</w>", "a", "a</w>", "ab</w>"]
    assert ours.encode("ab ba<|endoftext|>b") == [5, 1, 4, 0, 2]


def test_characters_enter_by_count_then_code_point_while_they_fit():
    ours = trained("word", "c b a a", 6)
    assert [ours.piece(id) for id in range(ours.vocab_size)] == [END_OF_TEXT, "a", "a</w>", "b", "b</w>"]
    assert ours.vocab_limit == 6


def test_no_two_ids_look_alike_and_a_literal_end_of_word_is_never_merged():
    ours = trained("word", "x</w>y x</w>y x</w>y x</w> </w> x x " * 5, 1000)
    pieces = [ours.piece(id) for id in range(ours.vocab_size)]
    assert len(set(pieces)) == len(pieces)
    assert all("</w>" not in piece.removesuffix("</w>") for piece in pieces)
    assert ours.decode(ours.encode("x</w>y x</w> </w> x")) == "x</w>y x</w> </w> x"


def test_the_end_of_text_mark_is_cut_out_before_counting():
    ours = trained("byte", "ab<|endoftext|>ab<|endoftext|>" * 9, 300)
    assert ours.vocab_size == 258, "ab is the only pair"
    assert ours.encode("ab<|endoftext|>") == [257, 0]


def test_unknown_characters_vanish_before_merging_and_are_counted():
    ours = trained("word", "abab ab a abab ab a", 50)
    pieces = [ours.piece(id) for id in ours.encode("abXab aX\nXY a<|endoftext|>b\x1c")]
    assert pieces == ["abab</w>", "a", "a</w>", END_OF_TEXT, "b"]
    assert ours.dropped == 5
    for _ in ours.encode_blocks(["aX", " X"]):
        pass
    assert ours.dropped == 7


@pytest.mark.parametrize(("vocab_limit", "advised"), [(11, True), (12, False)])
def test_advice_comes_when_characters_would_fill_over_half(vocab_limit, advised):
    ours = trained("word", "a b c", vocab_limit)
    assert (ours.advice is not None) == advised
    assert not advised or ("--vocab-size" in ours.advice and "--tokenizer byte" in ours.advice)


def test_advice_counts_the_characters_that_did_not_fit_too():
    assert "6 of the 2 tokens that are free" in trained("word", "a b c", 3).advice


@both_kinds
def test_progress_ends_at_the_merges_made(kind):
    told = []
    tokenizer = Tokenizer(300, kind)
    tokenizer.train_bpe(CORPUS, lambda *numbers: told.append(numbers))
    alphabet = tokenizer.vocab_size - len(told)
    most = told[0][1]  # as many as fit in the vocabulary, or the most that the text allows if that is less
    assert told == [(merge, most) for merge in range(1, len(told) + 1)]
    assert len(told) <= most <= 300 - alphabet
    assert told


def test_line_ends_can_be_tokens_and_have_no_spaces_beside_them():
    ours = trained("lines", "to be\nor not\n\nto be\n", 100)
    ids = ours.encode(" to be\r\n\n  or\nnot ")
    assert ours.decode(ids) == "to be\n\nor\nnot"
    assert [ours.piece(id) for id in ids].count("\n</w>") == 3
    assert ours.byte_lengths()[ours.encode("to be\nor not")].sum() == len("to be\nor not ")


def test_characters_have_one_id_each_and_lose_nothing_of_the_training_text():
    ours = trained("char")
    assert ours.vocab_size == 1 + len(set(CORPUS.replace(END_OF_TEXT, "")))
    assert ours.decode(ours.encode(CORPUS)) == CORPUS
    assert len(ours.encode("cat\n\nsat")) == 8
    assert ours.byte_lengths()[ours.encode(CORPUS)].sum() == len(CORPUS.encode())
    assert ours.unknown("Q cat Q") == {"Q": 2}
    with pytest.raises(UserError, match="3 different characters, but --vocab-size leaves room for 2: raise it by 1"):
        trained("char", "abc", 3)
    with pytest.raises(UserError, match="only .* marks"):
        trained("char", END_OF_TEXT, 3)


def test_special_tokens_come_after_the_end_of_text_and_are_never_split_or_learned():
    ours = Tokenizer(400, "byte", special_tokens=["<|user|>", "<|bot|>"])
    ours.train_bpe("<|user|>hi<|bot|>hi<|user|>hi<|bot|>hi<|endoftext|>" * 3)
    assert [ours.piece(id) for id in range(3)] == [END_OF_TEXT, "<|user|>", "<|bot|>"]
    assert (ours.special_tokens, ours.end_of_text, ours.vocab_size) == (("<|user|>", "<|bot|>"), 0, 260)
    assert ours.encode("<|bot|>hi<|user|><|endoftext|>") == [2, 259, 1, 0]
    assert ours.decode([1, 259, 2, 0]) == "<|user|>hi<|bot|><|endoftext|>"


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([""], "is empty"),
        (["a b"], "has white space in it"),
        (["a\u3000b"], "has white space in it"),
        (["<<|end"], "has the beginning of <|endoftext|> in it"),
        ([END_OF_TEXT], "is one already"),
        (["<a>", "<a>"], "is one already"),
        (["a"], "is a single character"),
        (["<|é|>"], "has letters that stand for bytes"),
        (["<\ud800>"], "is not valid text"),
    ],
)
def test_a_text_that_cannot_be_a_special_token_is_refused(tokens, reason):
    with pytest.raises(UserError, match=f"--special-token .* {re.escape(reason)}"):
        Tokenizer(400, "byte", special_tokens=tokens)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"kind": "word", "split": "gpt4"}, "--split gpt4 goes with --tokenizer byte"),
        ({"kind": "byte", "keep_newlines": True}, "--keep-newlines goes with --tokenizer word"),
    ],
)
def test_choices_of_another_kind_are_refused(choices, words):
    with pytest.raises(UserError, match=words):
        Tokenizer(400, **choices)


# Errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, "word"), ["--vocab-size is 2,", "at least 3"]),
        ((256, "byte"), ["--vocab-size is 256,", "at least 257"]),
        ((9, "chars"), ["--tokenizer is chars,", "word, byte, char"]),
        ((1, "char"), ["--vocab-size is 1,", "at least 2"]),
    ],
)
def test_impossible_limits_and_kinds_are_refused(arguments, words):
    with pytest.raises(UserError) as error:
        Tokenizer(*arguments)
    assert all(word in str(error.value) for word in words)


@both_kinds
def test_a_lone_surrogate_is_a_value_error(kind):
    tokenizer = trained(kind)
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.train_bpe("a\udfff")


@pytest.mark.parametrize("id", [-1, 400, 10**9])
def test_an_id_outside_the_vocabulary_is_named(id):
    with pytest.raises(UserError, match=rf"token id {id} .* 0 to \d+"):
        trained("byte").decode([5, id])


def test_a_text_of_white_space_alone_has_no_words_to_train_on():
    with pytest.raises(UserError, match="no word"):
        trained("word", " \n<|endoftext|>\t")
