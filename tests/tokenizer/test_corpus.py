"""The text that comes with hipgpt: reproducible, well formed, and varied."""

import re
import sys
from collections import Counter

import pytest

from tests.support import ROOT

DATA = ROOT / "data"


@pytest.fixture(scope="module")
def text() -> str:
    return (DATA / "data.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sentences(text) -> list[str]:
    return re.findall(r'"?[^.!?]+[.!?]"?', text.replace("\n", " "))


@pytest.fixture(scope="module")
def make_corpus():
    sys.path.insert(0, str(DATA))
    try:
        import make_corpus
    finally:
        sys.path.remove(str(DATA))
    return make_corpus


def test_the_script_writes_the_very_bytes_that_are_there(make_corpus):
    assert make_corpus.corpus().encode() == (DATA / "data.txt").read_bytes()


def test_the_numbers_are_splitmix64s(make_corpus):
    """The first outputs for seed 1234567, as published with the reference implementation."""
    dice = make_corpus.Dice(1234567)
    assert [dice.below(2**64) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_it_is_one_to_two_megabytes_of_plain_text(text):
    assert 1_000_000 < len(text.encode()) < 2_000_000
    assert re.fullmatch(r'[A-Za-z ,.?!:"\'\n]*', text)
    assert "  " not in text
    assert "\n\n\n" not in text


def test_every_slot_is_filled_and_every_choice_made(text):
    assert not re.search(r"[{}\[\]|_]", text)


def test_every_way_of_saying_every_beat_can_be_said(make_corpus):
    """Each template, with each cast, gives a sentence: no unknown slot, no open bracket."""
    dice, grammar = make_corpus.Dice(1), make_corpus.grammar
    beats = [grammar.OPENINGS, grammar.CLOSINGS, *(beat for plot in grammar.PLOTS.values() for beat in plot)]
    for template in (template for beat in beats for template in beat):
        for _ in range(20):
            sentence = make_corpus.say(template, make_corpus.cast(dice), dice)
            assert re.fullmatch(r'"?[A-Z].*[.!?]"?', sentence), sentence
            assert sentence.count('"') % 2 == 0, sentence


def test_paragraphs_begin_with_a_capital_and_close_their_quotes(text):
    for paragraph in filter(None, text.split("\n")):
        assert re.match(r'"?[A-Z]', paragraph), paragraph
        assert paragraph.count('"') % 2 == 0, paragraph
        assert paragraph[-1] in '.!?"', paragraph


def test_articles_fit_the_word_that_follows(text):
    assert not re.findall(r"\ba [aeiou]\w+", text)
    assert not re.findall(r"\ban (?!hour)[^aeiou]\w+", text)


def test_stories_have_a_beginning_a_middle_and_an_end_and_are_not_all_alike(text):
    stories = text.strip().split("\n\n")
    assert len(stories) > 1000
    assert len(set(stories)) == len(stories)
    lengths = Counter(len(re.findall(r'[.!?]"?(?=\s|$)', story)) for story in stories)
    assert min(lengths) >= 8
    assert max(lengths) <= 32


def test_sentences_and_words_are_varied(sentences, text):
    """At least 2 sentences in 5 are new, no sentence is more than 1 in 200, and the vocabulary is large."""
    counts = Counter(sentence.strip() for sentence in sentences)
    assert len(counts) > 0.4 * len(sentences)
    assert max(counts.values()) < len(sentences) / 200
    assert len(set(re.findall(r"[a-z]+", text.lower()))) > 800
