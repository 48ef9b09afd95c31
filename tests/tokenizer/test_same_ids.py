"""gpt/tokenizer/tokenizer.py: Hugging Face's tokenizers read its file and give the same ids and strings."""

from dataclasses import replace

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.corpus import read_blocks
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.vocabulary import SPLITS
from tests.tokenizer.samples import CORPUS, FRAGMENTS, assert_same, both_kinds, every_kind, of_each, texts, trained


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
