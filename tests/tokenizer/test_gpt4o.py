"""gpt/tokenizer/gpt4o.py: the words of GPT-4o's pattern, compared with those of a library of regular expressions."""

import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.tokenizer.gpt4o import Gpt4o
from gpt.tokenizer.huggingface import _PATTERNS

# Letters of all cases and without one, marks, contractions, slashes, and what may be beside them
FRAGMENTS = [
    *"aAsStTéÉǅßªʰ日本あาน", "\u0301", "\u0e34", "\u093f", "'", "'s", "'S", "'re", "'LL", "'ſ", *"!。()-_/’", "//",
    "😀", " ", "  ", "\n", "\r\n", "\t", "\u3000", "\xa0", "1", "12", "٣", "½",
]  # fmt: skip


def words(text):
    split = Gpt4o()
    found, count = split.cut(split.chunks(text.encode()).joined())
    assert count.sum() == len(found.start)
    return found.joined().decode(errors="surrogateescape").split("\udcff")[:-1]


@settings(max_examples=300)
@given(text=st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_words_are_those_of_the_pattern(text):
    assert words(text) == regex.findall(_PATTERNS["gpt4o"], text)


def test_a_word_ends_before_a_capital_behind_a_small_letter():
    assert words("getHTTPItem aB日本C") == ["get", "HTTPItem", " a", "B日本", "C"]


def test_a_contraction_goes_with_its_word_but_not_with_another_contraction():
    assert words("It's it's's 's") == ["It's", " it's", "'s", " '", "s"]


def test_slashes_follow_line_ends_that_follow_signs():
    assert words("x:\n//y\n//z") == ["x", ":\n//", "y", "\n", "//", "z"]


def test_a_mark_is_a_letter_except_among_signs():
    assert words("e\u0301a !\u0301a !!\u0301a") == ["e\u0301a", " !\u0301", "a", " !!\u0301", "a"]
