"""gpt/tokenizer/lexicon.py: numbers for distinct strings, compared with a dictionary's."""

from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpt.tokenizer.lexicon import MARGIN, MARK, UNKNOWN, Lexicon, Numbering, Strings, _hashed

# Lengths around 8 bytes (a string needs another integer) and 32 (it needs the dictionary), and bytes used as padding
alike = st.integers(1, 40).map(lambda n: (b"\0ab" * 14)[:n])
strings = alike | st.binary(min_size=1, max_size=40).map(lambda s: s.replace(b"\xff", b"\xfe"))
texts = st.lists(strings, max_size=30)


def add(lexicon, strings):
    """The numbers of strings, and the new ones as they are."""
    found = lexicon.find(strings)
    new = b"".join(some.joined() for some in lexicon.add([found]))
    return found.number.tolist(), new.split(MARK)[:-1]


def side_by_side(texts):
    length = np.array([len(text) for text in texts], np.intp)
    return Strings(b"".join(texts) + bytes(MARGIN), np.array([0, *accumulate(length)][: len(texts)], np.intp), length)


@given(batches=st.lists(texts))
def test_strings_get_the_numbers_that_a_dictionary_would_give(batches):
    lexicon, expected = Lexicon(), {}
    for batch in batches:
        unseen = [text not in expected for text in batch]
        assert (lexicon.find(side_by_side(batch)).number == UNKNOWN).tolist() == unseen
        number, added = add(lexicon, side_by_side(batch))
        assert sorted(added) == sorted({text for text, is_new in zip(batch, unseen, strict=True) if is_new})
        expected |= {text: len(expected) + i for i, text in enumerate(added)}
        assert number == [expected[text] for text in batch]
        assert lexicon.find(side_by_side(batch)).number.tolist() == number
    assert len(lexicon) == len(expected)


@given(keys=st.lists(st.integers(0, 2**64 - 1), unique=True))
def test_different_keys_get_numbers_in_their_order(keys):
    number, new = Numbering(1, slots=2).add([np.array(keys, np.uint64)])
    assert number.tolist() == new.tolist() == list(range(len(keys)))


def test_keys_that_share_a_slot_find_their_way():
    numbering = Numbering(1, slots=2)
    numbering._slot = lambda hash: np.full(len(hash), len(numbering._slots) - 1)
    keys = np.arange(20, dtype=np.uint64)
    assert numbering.add([keys[:10]])[0].tolist() == list(range(10))
    assert numbering.add([keys[5:]])[0].tolist() == list(range(5, 20))
    assert numbering.find([np.append(keys, np.uint64(99))]).tolist() == [*range(20), UNKNOWN]


def test_words_that_differ_in_the_last_bytes_of_their_integers_have_different_hashes():
    """Among 59,319 random hashes, 0.4 pairs are expected to have the same upper 32 bits."""
    lanes = np.meshgrid(*[np.arange(33, 72, dtype=np.uint64) << np.uint64(56)] * 3)
    assert len(np.unique(_hashed([lane.ravel() for lane in lanes]) >> np.uint64(32))) > 59_000


def test_the_mark_is_a_string_like_no_other():
    lexicon, others = Lexicon(), side_by_side([b"\0", b"x" * 7, b"x" * 8, b"x" * 31, b"x" * 32])
    assert add(lexicon, side_by_side([MARK]))[0] == [0]
    assert set(lexicon.find(others).number.tolist()) == {UNKNOWN}
    assert sorted(add(lexicon, others)[0]) == [1, 2, 3, 4, 5]
    assert lexicon.find(side_by_side([MARK])).number.tolist() == [0]


def test_several_threads_find_the_same_numbers_as_one():
    lexicon, words = Lexicon(), side_by_side([b"%d" % i * (i % 9 + 1) for i in range(5000)])
    number, _ = add(lexicon, words)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lexicon.find, [words] * 50):
            assert found.number.tolist() == number


def test_several_texts_get_the_same_numbers_whatever_the_number_of_threads():
    """There are strings of every size class, and more than are added at once, within a text and in several."""
    texts = [side_by_side([b"%d" % (i * i % 90_001) * (i % 9 + 1) for i in range(first, 150_000)]) for first in (0, 7)]
    numbers = []
    for threads in (1, 3):
        lexicon = Lexicon()
        found = [lexicon.find(text) for text in texts]
        new = b"".join(some.joined() for some in lexicon.add(found, threads)).split(MARK)[:-1]
        assert len(set(new)) == len(new) == len(lexicon)
        for text, each in zip(texts, found, strict=True):
            assert [new[number] for number in each.number] == text.joined().split(MARK)[:-1]
        numbers.append([each.number.tolist() for each in found])
    assert numbers[0] == numbers[1]
