"""gpt/lexicon.py: numbers of distinct strings, against a dictionary."""

from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpt.lexicon import MARGIN, UNKNOWN, Lexicon, Numbering, Strings

# About the seams between integers (8 bytes) and to the dictionary (32), and with what strings are padded with elsewhere
alike = st.integers(0, 40).map(lambda n: (b"\0ab" * 14)[:n])
strings = alike | st.binary(max_size=40).map(lambda s: s.replace(b"\xff", b""))
texts = st.lists(strings, max_size=30)


def side_by_side(texts):
    length = np.array([len(text) for text in texts], np.intp)
    return Strings(b"".join(texts) + bytes(MARGIN), np.array([0, *accumulate(length)][: len(texts)], np.intp), length)


@given(batches=st.lists(texts))
def test_strings_get_the_numbers_that_a_dictionary_would_give(batches):
    lexicon, expected = Lexicon(), {}
    for batch in batches:
        unseen = [text not in expected for text in batch]
        assert (lexicon.find(side_by_side(batch)) == UNKNOWN).tolist() == unseen
        number, new = lexicon.add(side_by_side(batch))
        added = new.joined().split(b"\xff")[:-1]
        assert sorted(added) == sorted({text for text, is_new in zip(batch, unseen, strict=True) if is_new})
        expected |= {text: len(expected) + i for i, text in enumerate(added)}
        assert number.tolist() == [expected[text] for text in batch]
        assert lexicon.find(side_by_side(batch)).tolist() == number.tolist()
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
