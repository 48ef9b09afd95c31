"""Texts, characters and tokenizers that the tests of this room share."""

import unicodedata

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from gpt.tokenizer import END_OF_TEXT, Tokenizer

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


def assert_same(ours, theirs, text):
    ids = ours.encode(text)
    encoding = theirs.encode(text)
    assert ids == encoding.ids
    assert [ours.piece(id) for id in ids] == encoding.tokens
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


both_kinds = pytest.mark.parametrize("kind", ["word", "byte"])
every_kind = pytest.mark.parametrize("kind", KINDS)
of_each = settings(max_examples=40)  # 280 in all: the kinds share nearly all of their code
