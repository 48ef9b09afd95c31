"""gpt/tokenizer/tiktoken.py: a vocabulary in tiktoken's form gives the ids of tiktoken's algorithm."""

import base64
import hashlib
import math

import pytest
import regex
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.tokenizer import Tokenizer, tiktoken
from gpt.tokenizer.huggingface import _PATTERNS
from gpt.tokenizer.marks import composed
from gpt.tokenizer.spelling import ByteSpelling
from tests.tokenizer.samples import texts, trained

SPECIAL = ["<|endoftext|>", None, "<|im_start|>"]
MORE = [
    b"zj",
    b"qz",
    b"jw",
    b"qzjw",
    b"zz",
    b"zzz",
    b"zzzzz",
    b"xx",
    b"xxx",
    b"xxxxx",
    b"xxxx",
]  # joining makes no qzjw


def theirs(text, ranks, split, special):
    """The ids that tiktoken gives: a word that is a token has its rank, else the lowest rank is joined first."""
    ids = []
    for part in regex.split(f"({'|'.join(map(regex.escape, special))})", text):
        if part in special:
            ids.append(special[part])
            continue
        for word in regex.findall(_PATTERNS[split], part):
            data = word.encode()
            parts = [data] if data in ranks else [data[place : place + 1] for place in range(len(data))]
            while len(parts) > 1:
                joined = [ranks.get(left + right, math.inf) for left, right in zip(parts, parts[1:], strict=False)]
                place = joined.index(min(joined))
                if joined[place] == math.inf:
                    break
                parts[place : place + 2] = [parts[place] + parts[place + 1]]
            ids += map(ranks.__getitem__, parts)
    return ids


def ranks_of(split):
    """Ranks that a tokenizer of ours has learned, the bytes in another order, and some that merging never makes."""
    learned = trained("byte" if split == "gpt2" else split, vocab_limit=420)
    pieces = map(learned.piece, range(1 + len(learned.special_tokens), learned.vocab_size))
    tokens = list(map(ByteSpelling.bytes_of, pieces))
    tokens[:256] = tokens[:256][::-1]
    return {token: rank for rank, token in enumerate([*tokens, *MORE])}


def written(path, ranks):
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))
    return path


@pytest.fixture(scope="module", params=["gpt2", "gpt4", "qwen2", "gpt4o"])
def both(request, tmp_path_factory):
    """A file's tokenizer, the file that it saves, opened by Hugging Face, and what tiktoken would be given."""
    ranks = ranks_of(request.param)
    folder = tmp_path_factory.mktemp("tiktoken")
    path = written(folder / "any.tiktoken", ranks)
    nfc = request.param == "qwen2"
    known = tiktoken._Known("any", request.param, len(ranks) + 1, SPECIAL, nfc)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiktoken._KNOWN, hashlib.sha256(path.read_bytes()).hexdigest(), known)
        ours = Tokenizer.load(path)
    ours.save(folder / "tokenizer.json")
    special = {text: known.first + number for number, text in enumerate(SPECIAL) if text}
    hugging_face = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return (
        ours,
        hugging_face,
        lambda text: theirs(composed(text) if nfc else text, ranks, request.param, special),
    )


@given(
    text=st.one_of(
        texts, st.text("abxzqjw \n'1"), st.lists(st.sampled_from(["a ", "xx", *filter(None, SPECIAL)])).map("".join)
    )
)
def test_ids_are_those_of_tiktoken(both, text):
    ours, hugging_face, expected = both
    assert ours.encode(text) == expected(text)
    assert hugging_face.encode(text).ids == ours.encode(text)


def test_the_lowest_rank_is_joined_first_and_a_word_that_is_a_token_is_not_merged(both):
    ours, _, expected = both
    for text in ("qzjw", "xqzjw", *("z" * count for count in range(20)), *("x" * count for count in range(20))):
        assert ours.encode(text) == expected(text)
    assert len(ours.encode("qzjw")) == 1
    assert [ours.piece(id) for id in ours.encode("xqzjw")] == ["x", "q", "zj", "w"]


def test_an_unknown_vocabulary_is_refused_with_what_to_give_instead(tmp_path):
    path = written(tmp_path / "my.tiktoken", ranks_of("gpt2"))
    with pytest.raises(UserError, match=r"my\.tiktoken is .*tiktoken.*cl100k_base.*: give the tokenizer\.json"):
        Tokenizer.load(path)


def test_every_known_vocabulary_has_its_special_tokens_behind_its_ranks():
    sizes = {"r50k_base": 50257, "cl100k_base": 100277, "o200k_base": 200019, "Llama 3": 128256, "Qwen": 151851}
    assert {each.name: each.first + len(each.special) for each in tiktoken._KNOWN.values()} == sizes
