"""gpt/tokenizer/tokenizer.py: its own promises; Hugging Face reads its file and gives the same ids."""

import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt.tokenizer.encoding
from gpt.corpus import read_blocks
from gpt.errors import UserError
from gpt.tokenizer import END_OF_TEXT, Tokenizer
from gpt.tokenizer.vocabulary import SPLITS
from tests.support import ROOT

CORPUS = (
    "the cat sat on the mat, the rat sat that's it; we'll see: it's 2024\r\n"
    "日本語の文 日本語 العربية عربي ünï e\u0301te\u0301 e\u0301 👩‍👩‍👧‍👦 👩‍👩‍👧 👍🏽\n\n\n"
    "x</w>y a </w></w> </w </w> x</w> <a> a<|endoftext|>b  <|endoftext|>\tba ab abab aaa\u00a0aaaa\u200bb\x1cab\ufeff"
) * 3
FRAGMENTS = [
    "a", "b", "ab", "the", "it's", "'", "'s", "'ll", "12", "٣", "²", ",", "</w>", "</w", "<", "/", "w", ">",
    END_OF_TEXT, "<|endoftext", "|>", " ", "  ", "\n", "\n\n\n", "\r\n", "\t", "\v", "\f", "\x00", "\x1c", "\x1d",
    "\x1e", "\x1f", "\x85", "\xa0", "\xad", "\u1680", "\u180e", "\u2003", "\u200b", "\u200d", "\u2028", "\u2029",
    "\u202f", "\u205f", "\u3000", "\ufeff", "日本", "語", "العربية", "e\u0301", "\u0301", "ñ", "👩‍👩‍👧", "👍🏽", "Ⅷ",
    "X", "ſ", "İ", "\uffff", "<user>", "語|", "'S", "'ſ",
]  # fmt: skip
# Hugging Face's classes are those of Unicode 14; with a newer Python, draw only from a range without later ones
NEWEST = 0x10FFFF if tuple(map(int, unicodedata.unidata_version.split("."))) <= (14, 0, 0) else 0x7FF
characters = st.characters(exclude_categories=("Cs", "Cn"), max_codepoint=NEWEST)
texts = st.lists(st.sampled_from(FRAGMENTS) | characters).map("".join)


KINDS = {
    "word": {"kind": "word"},
    "lines": {"kind": "word", "keep_newlines": True},
    "char": {"kind": "char"},
    "byte": {"kind": "byte"},
    "gpt4": {"kind": "byte", "split": "gpt4"},
    "qwen2": {"kind": "byte", "split": "qwen2", "special_tokens": ["<user>", "<|endoftext|>.", "語|"]},
    "gpt4o": {"kind": "byte", "split": "gpt4o"},
}


def trained(kind, text=CORPUS, vocab_limit=400):
    tokenizer = Tokenizer(vocab_limit, **KINDS[kind])
    tokenizer.train_bpe(text)
    return tokenizer


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """kind → (ours, Hugging Face's from our file)."""
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    both = {}
    for kind in KINDS:
        trained(kind).save(path)
        both[kind] = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    return both


def assert_same(ours, theirs, text):
    ids = ours.encode(text)
    encoding = theirs.encode(text)
    assert ids == encoding.ids
    assert [ours.piece(id) for id in ids] == encoding.tokens
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


both_kinds = pytest.mark.parametrize("kind", ["word", "byte"])
every_kind = pytest.mark.parametrize("kind", KINDS)
of_each = settings(max_examples=40)  # 280 in all: the kinds share nearly all of their code


# Hugging Face


@every_kind
@of_each
@given(text=texts)
def test_hugging_face_gives_the_same_ids_and_strings(pairs, kind, text):
    assert_same(*pairs[kind], text)


@every_kind
@pytest.mark.parametrize(
    "text",
    [
        "", " ", "abXab", "aX", "Xa", "X", "aX b", "x</w>y a", "</w>", "</w></w> a", "a<|endoftext|>b", "a\n\n\nb",
        "a <|endoftext|> b", "a  <|endoftext|>", "<|endoftext|><|endoftext|>", "<|<|endoftext|>|>",
        "<|endoftext|>\n\nab", "<|endoftext| >", "<|endoXftext|>", "aX<|endoftext|>'s",
        "a\u200bb\x1cab \x1f a\xa0b\x85c", "a\r\nb\r\n\r\n",
        "\ufeffa",
    ],
)  # fmt: skip
def test_hugging_face_agrees_on_the_odd_ones(pairs, kind, text):
    assert_same(*pairs[kind], text)


@every_kind
@of_each
@given(data=st.data())
def test_hugging_face_decodes_any_ids_to_the_same_text(pairs, kind, data):
    ours, theirs = pairs[kind]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@both_kinds
@settings(max_examples=60)  # each of which trains a tokenizer
@given(corpus=st.lists(st.sampled_from(FRAGMENTS), min_size=1), text=texts, vocab_limit=st.integers(257, 300))
def test_hugging_face_agrees_for_any_training_text(tmp_path_factory, kind, corpus, text, vocab_limit):
    path = tmp_path_factory.getbasetemp() / "any.json"
    ours = trained(kind, "a" + "".join(corpus * 2), vocab_limit)
    ours.save(path)
    assert_same(ours, tokenizers.Tokenizer.from_file(str(path)), text)


def test_white_space_is_that_of_hugging_face_for_every_character_up_to_the_last_white_one():
    ours = trained("word", "日 日")
    theirs = tokenizers.pre_tokenizers.WhitespaceSplit()
    characters = [*map(chr, range(0x3100))]
    pieces = [ours.piece(id) for id in ours.encode(" ".join(f"日{c}日" for c in characters))]
    ends_before = {c for c, piece in zip(characters, pieces[::2], strict=True) if piece == "日</w>"}
    assert set(pieces) == {"日", "日</w>"}
    assert ends_before == {c for c in characters if len(theirs.pre_tokenize_str(f"日{c}日")) == 2}


def byte_pieces(text, split="gpt2"):
    words, _ = SPLITS[split].cut(SPLITS[split].chunks(text.encode()).joined())
    return words.joined().decode(errors="surrogateescape").split("\udcff")[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["gpt2", "gpt4", "qwen2", "gpt4o"])
def test_byte_pieces_are_hugging_faces_for_every_code_point(pairs, split):
    pre_tokenizer = pairs["byte" if split == "gpt2" else split][1].pre_tokenizer
    assigned = *range(0xD800), *range(0xE000, 0x40000)  # and of the planes beyond, that have no letters, some
    every = [*map(chr, (*assigned, *range(0x40000, 0x110000, 31)))]
    for first in range(0, len(every), 1 << 16):
        text = "".join(f"x{c}5{c}!{c} {c}'{c}\n" for c in every[first : first + (1 << 16)])
        theirs = pre_tokenizer.pre_tokenize_str(text)
        assert byte_pieces(text, split) == [text[start:end] for _, (start, end) in theirs]


def test_byte_pieces_of_characters_newer_than_the_table_are_those_of_other_signs():
    letter = "\U00033479"  # a letter of Unicode 17
    assert byte_pieces(f"a{letter}a 1{letter}") == ["a", letter, "a", " 1", letter]


@both_kinds
def test_tiny_shakespeare_has_hugging_faces_ids(tmp_path, shakespeare, kind):
    ours = Tokenizer(5000, kind)
    ours.train_bpe(read_blocks(shakespeare))
    ours.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = shakespeare.read_bytes().decode()
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.vocab_size == 5000
    assert ours.decode(ids) == (text if kind == "byte" else " ".join(text.split()))
    assert ours.decode(ours.encode("Iraq is")) == "Iraq is", "no word of the training text ends in q"


@every_kind
def test_a_file_that_hugging_face_has_saved_again_loads(tmp_path, kind):
    ours = trained(kind)
    ours.save(tmp_path / "ours.json")
    tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json")).save(str(tmp_path / "theirs.json"))
    again = Tokenizer.load(tmp_path / "theirs.json")
    assert again.config == replace(ours.config, vocab_limit=ours.vocab_size), (
        "Hugging Face's file does not keep the limit"
    )
    assert again.encode(CORPUS) == ours.encode(CORPUS)


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


@every_kind
def test_saving_and_loading_keep_everything_and_leave_no_other_file(tmp_path, kind):
    ours = trained(kind, vocab_limit=5000)
    ours.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded, loaded.config, loaded.vocab_limit) == (ours, ours.config, 5000)
    assert loaded.encode(CORPUS) == ours.encode(CORPUS)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def assert_refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not exist"),
        (b"", "is not valid JSON"),
        (b'{"version": "1.0", ', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[]", "not a tokenizer that hipgpt can use|asks for what hipgpt does not do"),
        (b"{}", "not a tokenizer that hipgpt can use|asks for what hipgpt does not do"),
        (
            b'{"model": {"vocab": {}, "merges": [], "end_of_word_suffix": null}}',
            "not a tokenizer that hipgpt can use|asks for what hipgpt does not do",
        ),
    ],
)
def test_missing_and_broken_files_are_refused_in_one_line(tmp_path, data, words):
    if data is not None:
        (tmp_path / "tokenizer.json").write_bytes(data)
    assert_refused(tmp_path / "tokenizer.json", words)


def test_a_directory_is_refused(tmp_path):
    assert_refused(tmp_path, "is a directory")


@both_kinds
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["normalizer"], {"type": "Lowercase"}),
        (["pre_tokenizer"], {"type": "Whitespace"}),
        (["decoder"], None),
        (["added_tokens"], []),
        (["model", "byte_fallback"], True),
        (["model", "vocab", "a"], 7000),
        (["model", "vocab_limit"], 3),
        (["model", "vocab_limit"], "many"),
        (["model", "merges", 0], ["a", "nowhere"]),
        (["model", "merges", 0], ["a"]),
        (["model", "merges"], []),
        (["model", "vocab", "a"], True),
        (["model", "vocab_limit"], 2**31),
        (["model", "vocab_limit"], 400.0),
        (["truncation"], {"max_length": 5}),
        (["padding"], {"pad_id": 0}),
    ],
)
def test_a_file_that_would_give_other_ids_is_refused(tmp_path, kind, keys, value):
    path = tmp_path / "tokenizer.json"
    trained(kind).save(path)
    document = section = json.loads(path.read_bytes())
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    path.write_text(json.dumps(document))
    assert_refused(path, "not a tokenizer that hipgpt can use|asks for what hipgpt does not do")
