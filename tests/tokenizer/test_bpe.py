"""gpt/tokenizer/bpe.py and merges.py: learning and applying merges, beside the simplest program that does the same."""

import pickle
from collections import Counter
from itertools import chain, pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.tokenizer.bpe import GAP
from gpt.tokenizer.bpe import learn as learn_from_row
from gpt.tokenizer.merges import Merges

ALPHABET = "abc"
words_of_ids = st.lists(st.integers(0, 2), min_size=1, max_size=12)
counted_words = st.lists(st.tuples(words_of_ids, st.integers(1, 5)), min_size=1, max_size=12)


def ids(word):
    return [ALPHABET.index(c) for c in word]


def row_of(words):
    return np.array([GAP, *chain.from_iterable([*word, GAP] for word in words)], np.int32)


def learn(words, alphabet, most, *more, **named):
    counts = np.array([count for _, count in words], np.int64)
    return learn_from_row(row_of(word for word, _ in words), counts, alphabet, most, *more, **named)


def applied(merges, words):
    """The words after merging, as lists."""
    row = merges.apply(row_of(words)).tolist()
    gaps = [at for at, id in enumerate(row) if id == GAP]
    assert (gaps[0], gaps[-1]) == (0, len(row) - 1)
    return [row[start + 1 : end] for start, end in pairwise(gaps)]


def replaced(word, pair, made):
    """`word` with every occurrence of the pair replaced, from the left."""
    out, at = [], 0
    while at < len(word):
        found = tuple(word[at : at + 2]) == pair
        out.append(made if found else word[at])
        at += 2 if found else 1
    return out


def plainly_learned(words, most):
    """Recount all pairs for every merge."""
    words, pieces, merges, skipped = [(list(w), n) for w, n in words], list(ALPHABET), [], set()
    while len(merges) < most:
        counts = Counter()
        for word, count in words:
            for pair in pairwise(word):
                counts[pair] += count
        able = [(-n, pair) for pair, n in counts.items() if n > 1 and pair not in skipped]
        if not able:
            break
        pair = min(able)[1]
        piece = pieces[pair[0]] + pieces[pair[1]]
        if piece in pieces:
            skipped.add(pair)
            continue
        words = [(replaced(word, pair, len(pieces)), count) for word, count in words]
        pieces.append(piece)
        merges.append(pair)
    return merges


@given(words=counted_words, most=st.integers(0, 20))
def test_learning_equals_recounting_for_every_merge(words, most):
    assert learn(words, ALPHABET, most) == plainly_learned(words, most)


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("_LONGEST_ABREAST", 256),
        ("_LONGEST_ABREAST", 6),
        ("_LONGEST_ABREAST", 2),
        ("_SMALL_ALPHABET", 0),
        ("_MOST_IN_32_BITS", 0),
    ],
)
@settings(max_examples=50)  # of each
@given(words=counted_words, texts=st.lists(st.lists(st.integers(0, 2), max_size=12)))
def test_applying_equals_replacing_pair_after_pair(limit, value, words, texts):
    pairs = learn(words, ALPHABET, 20)
    expected = texts
    for rank, pair in enumerate(pairs):
        expected = [replaced(word, pair, len(ALPHABET) + rank) for word in expected]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"gpt.tokenizer.merges.{limit}", value)
        assert applied(Merges(len(ALPHABET), pairs), texts) == expected


def plainly_applied(ranks, word):
    """One merge after the other: the lowest rank first, and its leftmost place. `ranks` is by pair: (rank, id)."""
    word = list(word)
    while able := [(ranks[pair], at) for at, pair in enumerate(pairwise(word)) if pair in ranks]:
        (_, made), at = min(able)
        word[at : at + 2] = [made]
    return word


@st.composite
def merges_in_any_order(draw):
    """Merges over abc in any order: {pair: (rank, id)}. Several may make the same id, and parts may be made later."""
    number = {letter: id for id, letter in enumerate(ALPHABET)}
    for piece in sorted(draw(st.lists(st.text(ALPHABET, min_size=2, max_size=5), max_size=20)), key=len):
        if any(piece[:cut] in number and piece[cut:] in number for cut in range(1, len(piece))):
            number.setdefault(piece, len(number))
    ways = [
        (number[piece[:cut]], number[piece[cut:]], id)
        for piece, id in number.items()
        for cut in range(1, len(piece))
        if piece[:cut] in number and piece[cut:] in number
    ]
    return {(left, right): (rank, made) for rank, (left, right, made) in enumerate(draw(st.permutations(ways)))}


@pytest.mark.parametrize("longest", [256, 8, 4])
@settings(max_examples=300)  # of each
@given(
    ranks=merges_in_any_order(),
    texts=st.lists(
        st.lists(st.integers(0, 2), max_size=30) | st.lists(st.integers(0, 2), max_size=4).map(lambda w: w * 8)
    ),
)
def test_applying_merges_in_any_order_equals_one_merge_after_the_other(longest, ranks, texts):
    merges = Merges(len(ALPHABET), list(ranks), [made for _, made in ranks.values()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.tokenizer.merges._LONGEST_ABREAST", longest)
        assert applied(merges, texts) == [plainly_applied(ranks, text) for text in texts]


@given(words=counted_words)
def test_rare_pairs_wait_until_their_turn_and_change_nothing(words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.tokenizer.bpe._FEWEST_CANDIDATES", 1)
        assert learn(words, ALPHABET, 4) == plainly_learned(words, 4)


@given(words=counted_words, seed=st.integers())
def test_the_order_of_the_words_does_not_matter(words, seed):
    shuffled = words.copy()
    Random(seed).shuffle(shuffled)
    assert learn(words, ALPHABET, 20) == learn(shuffled, ALPHABET, 20)


def test_the_most_frequent_pair_comes_first_and_ties_go_to_the_smaller_ids():
    assert learn([(ids("ca"), 3), (ids("bc"), 2), (ids("ab"), 2), (ids("aa"), 2)], ALPHABET, 9) == [
        (2, 0),
        (0, 0),
        (0, 1),
        (1, 2),
    ]


def test_learning_ends_when_no_pair_occurs_twice_or_enough_is_learned():
    assert learn([(ids("ab"), 1), (ids("bc"), 1)], ALPHABET, 9) == []
    assert learn([(ids("ab"), 2), (ids("bc"), 3)], ALPHABET, 1) == [(1, 2)]


def test_a_run_of_one_letter_is_merged_from_the_left():
    merges = Merges(1, [(0, 0), (1, 1)])
    assert applied(merges, [[0] * n for n in (1, 3, 5, 7)]) == [[0], [1, 0], [2, 0], [2, 1, 0]]


def test_a_pair_that_may_not_join_or_whose_string_exists_is_passed_over():
    words = [(ids("ab"), 9), (ids("bc"), 8)]
    assert learn(words, ALPHABET, 9, joinable=lambda left, right: left != "a") == [(1, 2)]
    assert learn(words, [*ALPHABET, "ab"], 9) == [(1, 2)]


def test_progress_is_told_after_every_merge():
    told = []
    learn([(ids("abcab"), 2)], ALPHABET, 2, progress=lambda *numbers: told.append(numbers))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("period", ["a", "ab", "abcbbca"])
def test_a_word_of_a_hundred_thousand_letters_does_not_take_quadratic_time(period):
    word = ids(period) * (100_000 // len(period))
    pairs = learn([(word, 1)], ALPHABET, 500)
    (merged,) = applied(Merges(len(ALPHABET), pairs), [word])
    assert len(merged) < 20  # doubling merges leave about one symbol per binary digit of the length


def test_windows_of_a_long_word_agree_unless_their_symbols_keep_out_of_step(monkeypatch):
    """A run of one letter begins every window in the same way. A period of three does not."""
    alone, by_itself = [], Merges._apply_to_one
    monkeypatch.setattr(Merges, "_apply_to_one", lambda self, ids: alone.append(ids) or by_itself(self, ids))
    doubling = Merges(1, [(0, 0), (1, 1), (2, 2)])
    assert applied(doubling, [[0] * 1003]) == [[3] * 125 + [1, 0]]
    assert not alone
    twice_abcd = Merges(4, [(0, 1), (4, 2), (5, 3), (6, 6)])
    assert applied(twice_abcd, [[0, 1, 2, 3] * 401, [0, 1, 2, 3] * 2]) == [[7] * 200 + [6], [7]]
    assert list(map(len, alone)) == [3 * 401]  # a and b are certain to be merged, and then are one symbol


def test_merges_travel_to_another_process_without_their_table_of_pairs():
    merges = Merges(256, [(97, 98), (256, 98)])
    data = pickle.dumps(merges)
    assert len(data) < 2**14
    row = np.array([GAP, 97, 98, 98, GAP], np.int32)
    assert pickle.loads(data).apply(row).tolist() == merges.apply(row).tolist() == [GAP, 257, GAP]
