"""gpt/tokenizer/breaks.py: a text that is cut at breaks has the ids of one that is not."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.tokenizer.breaks import Breaks
from gpt.tokenizer.encoding import Encoder, WordsToIds
from gpt.tokenizer.lexicon import MARGIN, MARK, Strings
from gpt.tokenizer.marks import Marks
from gpt.tokenizer.merges import Merges
from gpt.tokenizer.spelling import ByteSpelling
from gpt.tokenizer.vocabulary import SPLITS

# Letters that share their first, second or last bytes, a mark of vowels, signs, digits, and what may be beside them
CHARACTERS = "あいヂ日本ㅂ한กा。、（５\u3000" + "aA7é's! \n\r" + "😀"
BYTE_SPLITS = ["gpt2", "gpt4", "qwen2", "gpt4o"]

texts = st.lists(st.text(CHARACTERS, max_size=8), max_size=8).map("".join)
runs_of_letters = st.text("あい゙。ａＡaA'", max_size=12)


@st.composite
def vocabularies(draw):
    """Merges of pieces that stand side by side in a text, wherever they begin and end; and some of them as words."""
    data = draw(st.text(CHARACTERS, min_size=2, max_size=12)).encode()
    number = {bytes([byte]): byte for byte in range(256)}
    pairs, made = [], []
    for _ in range(draw(st.integers(0, 12))):
        begin = draw(st.integers(0, len(data) - 2))
        known = [
            (data[begin:middle], data[middle:end])
            for end in range(begin + 2, min(len(data), begin + 9) + 1)
            for middle in range(begin + 1, end)
            if data[begin:middle] in number and data[middle:end] in number
        ]
        left, right = draw(st.sampled_from(known))
        if (number[left], number[right]) not in pairs:
            pairs.append((number[left], number[right]))
            made.append(number.setdefault(left + right, len(number)))
    words = {piece: id + 1000 for piece, id in number.items() if len(piece) > 1 and draw(st.booleans())}
    whole = {word: id for word, id in words.items() if word.decode(errors="ignore").encode() == word}
    return list(number), Merges(256, pairs, made), whole


@settings(max_examples=150)
@given(vocabulary=vocabularies(), text=texts)
def test_breaks_do_not_change_the_ids(vocabulary, text):
    pieces, merges, whole = vocabulary
    words_to_ids = WordsToIds(ByteSpelling(), merges, np.arange(len(pieces)), whole)
    for split in BYTE_SPLITS:
        breaks = Breaks([ByteSpelling.piece_of(piece) for piece in pieces], whole, has_case=split == "gpt4o")
        (cut,), (uncut,) = (
            Encoder(SPLITS[split], Marks(()), words_to_ids, each).encode([text]) for each in (breaks, None)
        )  # fmt: skip
        assert cut[0].tolist() == uncut[0].tolist(), split


@settings(max_examples=300)
@given(text=texts | runs_of_letters)
def test_words_end_at_the_breaks_and_where_they_end_without_them(text):
    def ends(strings):
        return set(np.cumsum([len(string) for string in strings.joined().split(MARK)[:-1]]).tolist())

    for split in BYTE_SPLITS:
        pattern, breaks = SPLITS[split], Breaks([], has_case=split == "gpt4o")
        chunks = pattern.chunks(text.encode())
        parts = breaks.cut(chunks)
        whole = ends(pattern.cut(chunks.joined())[0])
        assert ends(pattern.cut(parts.joined())[0]) == whole | ends(parts), split


def parts(text, pieces, whole=(), **options):
    data = text.encode()
    strings = Strings(data + bytes(MARGIN), np.array([0]), np.array([len(data)]))
    breaks = Breaks([ByteSpelling.piece_of(piece) for piece in pieces], whole, **options)
    return [part.decode() for part in breaks.cut(strings).joined().split(MARK)[:-1]]


def test_a_break_is_wherever_no_piece_spans_two_wide_letters():
    assert parts("日本語日本", []) == list("日本語日本")
    assert parts("日本語日本", ["日本".encode()]) == ["日本", "語", "日本"]
    assert parts("日本語日本", ["本語日".encode()]) == ["日", "本語日", "本"]


def test_a_piece_that_ends_within_a_character_spans_all_characters_that_begin_like_that():
    assert parts("あいう日", ["あ".encode() + "い".encode()[:2]]) == ["あい", "う", "日"]
    assert parts("あうか日", ["あ".encode() + "い".encode()[:1]]) == ["あう", "か", "日"]
    assert parts("いあ日あ", ["い".encode()[2:] + "あ".encode()]) == ["いあ", "日", "あ"]


def test_signs_stay_with_the_letters_behind_them_if_a_piece_has_both():
    assert parts("あ。い、う", ["。い".encode()]) == ["あ", "。い", "、", "う"]


def test_a_part_never_looks_like_a_whole_word():
    assert parts("日本語日本", ["日本".encode(), "語日".encode()], whole=["日本".encode()]) == ["日本語日本"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("日本語", "日 本 語"), ("日本語 A", "日 本 語 A"), ("日本語5", "日 本 語5"), ("日本。語本A", "日 本 。 語本A"),
     ("日本語A", "日本語A"), ("日本Ａ語本", "日本Ａ語 本"), ("日本é語本", "日本é語 本"), ("กันก", "กัน ก")],
)  # fmt: skip
def test_if_case_matters_no_letter_with_a_case_is_behind_a_break_in_a_run_of_letters(text, expected):
    assert " ".join(parts(text, [], has_case=True)) == expected


def test_breaks_travel_to_another_process_without_their_tables():
    data = pickle.dumps(Breaks(["a"]))
    assert len(data) < 2**10
    text = "あい".encode()
    strings = Strings(text + bytes(MARGIN), np.array([0]), np.array([len(text)]))
    assert len(pickle.loads(data).cut(strings).start) == 2
