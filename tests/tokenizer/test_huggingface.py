"""gpt/tokenizer/huggingface.py: tokenizers from elsewhere keep their ids, and what we cannot do is refused by name."""

import json
import unicodedata

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.huggingface import _PATTERNS
from gpt.tokenizer.marks import composed
from tests.tokenizer.samples import CORPUS, assert_same, texts

MARKS = ["<|endoftext|>", "<s>", "<s>>", "<|im_start|>"]
NEIGHBORS = [("a", "\u0301"), ("a\u0301", ""), ("a\u0323", "\u0323"), ("a\u05b0", "\u05b0")]


def splitting(split):
    """Hugging Face's pre-tokenizer for one of our splits."""
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.Split(Regex(_PATTERNS[split]), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    return pre_tokenizers.Sequence(list(parts))


def of_hugging_face(split, marks=tuple(MARKS), size=420):
    """A tokenizer that Hugging Face has trained. Its bytes have the first ids, its marks the last ones."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer, theirs.decoder = splitting(split), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(
        [CORPUS], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    theirs.add_special_tokens(list(marks[:2]))
    theirs.add_tokens([AddedToken(text, normalized=False) for text in marks[2:]])
    return theirs


def scattered(theirs):
    """The same tokenizer with its ids in another order, and with ids that no token has."""
    document = json.loads(theirs.to_str())
    size = theirs.get_vocab_size()
    moved = {id: (id * 7 + 3) % size + 5 * (id % 2) * size for id in range(size)}
    moved = {id: rank * 2 for rank, id in enumerate(sorted(moved, key=moved.get))}
    model, added = document["model"], document["added_tokens"]
    model["vocab"] = {piece: moved[id] for piece, id in model["vocab"].items()}
    for token in added:
        token["id"] = model["vocab"][token["content"]] = moved[token["id"]]
    return document


def with_every_merge(theirs):
    """The form of Llama 3's file: every way to make a piece is a merge, and whole words come first."""
    document = json.loads(theirs.to_str())
    model = document["model"]
    ids = model["vocab"]
    ways = [
        (piece[:at], piece[at:])
        for piece in sorted(ids, key=ids.get)
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    model["merges"], model["ignore_merges"] = [" ".join(way) for way in ways], True
    return document


FORMS = {
    "gpt2": lambda: scattered(of_hugging_face("gpt2")),
    "gpt4": lambda: with_every_merge(of_hugging_face("gpt4", ("<|end_of_text|>", *MARKS[1:]))),
    "qwen2": lambda: {**scattered(of_hugging_face("qwen2")), "normalizer": {"type": "NFC"}},
    "gpt4o": lambda: scattered(of_hugging_face("gpt4o")),
}


@pytest.fixture(scope="module", params=FORMS)
def pair(request, tmp_path_factory):
    """(ours from their file, theirs, theirs from our file), for each form of file."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "tokenizer.json").write_text(json.dumps(FORMS[request.param]()), encoding="utf-8")
    ours = Tokenizer.load(folder)
    ours.save(folder / "ours.json")
    assert Tokenizer.load(folder / "ours.json") == ours
    return ours, *(tokenizers.Tokenizer.from_file(str(folder / name)) for name in ("tokenizer.json", "ours.json"))


@settings(max_examples=60)
@given(text=st.lists(texts | st.sampled_from([*MARKS, "<|end_of_text|>", "A\u030a", ">\u0338", "\u2126"])).map("".join))
def test_the_ids_of_a_tokenizer_from_elsewhere_stay_its_own(pair, text):
    ours, theirs, of_our_file = pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids == of_our_file.encode(text).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.decode(ids) == of_our_file.decode(ids, skip_special_tokens=False)


MOVING = [chr(point) for point in range(0x110000) if unicodedata.combining(chr(point))]
COMPOSING = [
    "".join(chr(int(part, 16)) for part in parts.split() if "<" not in part)
    for point in range(0x110000)
    if (parts := unicodedata.decomposition(chr(point)))
]


def test_text_is_composed_as_hugging_face_does_whatever_pythons_unicode_is():
    """Each character that some version of Unicode moves or composes, between such that all versions do."""
    theirs = normalizers.NFC()
    for text in COMPOSING + [f"{before}{mark}{after}" for mark in MOVING for before, after in NEIGHBORS]:
        assert composed(text) == theirs.normalize_str(text), ascii(text)


@given(text=st.lists(st.sampled_from([*MOVING, *COMPOSING, "a", "e", "\u0301"])).map("".join))
def test_any_text_is_composed_as_hugging_face_does(text):
    assert composed(text) == normalizers.NFC().normalize_str(text)


@settings(max_examples=60)
@given(data=st.data())
def test_any_ids_have_their_text_and_missing_ones_have_none(pair, data):
    ours, theirs, _ = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert all(ours.byte_lengths()[id] == len(ours.decode([id]).encode()) for id in ids if ours.piece(id).isascii())


def test_a_word_that_is_a_piece_has_its_id_even_if_the_merges_end_elsewhere(tmp_path):
    document = json.loads(of_hugging_face("gpt4", ()).to_str())
    bytes_alone = {piece: id for piece, id in document["model"]["vocab"].items() if len(piece) == 1}
    # "xyz" is made of x and yz, but xy comes first
    document["model"]["vocab"] = {**bytes_alone, "xy": 256, "yz": 257, "xyz": 258}
    document["model"]["merges"] = ["x y", "y z", "x yz"]
    for whole in (False, True):
        document["model"]["ignore_merges"] = whole
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        ours = Tokenizer.load(tmp_path)
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert ours.encode("xyz") == ([258] if whole else [256, bytes_alone["z"]])
        assert_same(ours, theirs, "xyz axyz xyz xyxyz yz")


@pytest.mark.parametrize(
    ("marks", "end"),
    [(MARKS, "<|endoftext|>"), (["<s>", "<|end_of_text|>"], "<|end_of_text|>"), (["<s>", "<|end|>"], None)],
)
def test_the_end_of_a_text_is_the_mark_that_says_so(tmp_path, marks, end):
    of_hugging_face("gpt2", marks).save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert (None if ours.end_of_text is None else ours.piece(ours.end_of_text)) == end
    assert ours.config.special_tokens == tuple(mark for mark in marks if mark != end)


@pytest.mark.parametrize(("vocab", "merges"), [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
@pytest.mark.parametrize("first_line", ["#version: 0.2\n", "", "#version: 0.2\r\n"])
def test_gpt2s_own_files_are_a_tokenizer_too(tmp_path, vocab, merges, first_line):
    """Also with the line ends of Windows, which git gives them there."""
    document = scattered(of_hugging_face("gpt2", MARKS[:1]))
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    expected = Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / vocab).write_text(json.dumps(document["model"]["vocab"]), encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in document["model"]["merges"])
    lines = lines.replace("\n", "\r\n" if "\r" in first_line else "\n")
    (tmp_path / merges).write_bytes((first_line + lines).encode())
    assert Tokenizer.load(tmp_path) == expected
    config = tmp_path / "tokenizer_config.json"  # as transformers 4.57 writes it
    added = {"0": {"content": "<|endoftext|>", "special": True}}
    config.write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "added_tokens_decoder": added})
    )
    assert Tokenizer.load(tmp_path) == expected
    config.unlink()
    (tmp_path / "added_tokens.json").write_text('{"<s>": 7}')
    assert_refused(tmp_path, "added_tokens.json")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"tokenizer_class": "Qwen2Tokenizer"}, "has the tokenizer_class 'Qwen2Tokenizer', which"),
        ({"add_prefix_space": True}, "has add_prefix_space, which"),
        ({"add_bos_token": True}, "has add_bos_token, which"),
        ({"added_tokens_decoder": {"7": {"content": "<s>"}}}, "has the added token '<s>', which"),
        ({"added_tokens_decoder": 7}, "is not the configuration of a tokenizer"),
    ],
)
def test_what_transformers_would_do_beyond_gpt2s_own_files_is_refused(tmp_path, config, words):
    document = json.loads(of_hugging_face("gpt2", MARKS[:1]).to_str())
    (tmp_path / "vocab.json").write_text(json.dumps(document["model"]["vocab"]), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in document["model"]["merges"])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert_refused(tmp_path, words)


def assert_refused(path, words):
    with pytest.raises(UserError) as error:
        Tokenizer.load(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(normalizer={"type": "NFKC"}), "it has the normalizer 'NFKC'"),
        (lambda d: d.update(normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "'Lowercase'"),
        (lambda d: d.update(decoder={"type": "Metaspace"}), "it has the decoder 'Metaspace'"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "it has the pre_tokenizer Whitespace"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"), r"split pattern '\\w+'"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "with the behavior 'Removed'"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "(add_prefix_space)"),
        (lambda d: d.update(truncation={"max_length": 5}), "has truncation (not so a copy in which truncation is"),
        (lambda d: d.update(padding={"pad_id": 0}), "it has padding"),
        (lambda d: d.update(whatever=1), "it has the unknown key 'whatever'"),
        (lambda d: d["model"].update(whatever=1), "it has the unknown key 'whatever' in its model"),
        (lambda d: d["model"].update(type="Unigram"), "it has the model 'Unigram'"),
        (lambda d: d["model"].update(byte_fallback=True), "it has byte_fallback"),
        (lambda d: d["model"].update(dropout=0.1), "it has dropout"),
        (lambda d: d["model"].update(continuing_subword_prefix="##"), "it has continuing_subword_prefix"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "it is like one of --tokenizer word, but not one"),
        (lambda d: d["model"]["vocab"].pop("a"), "it has no id for 'a'"),
        (lambda d: d["model"]["vocab"].update(alone=9999), "it has 1 tokens that no merge makes, such as 'alone'"),
        (lambda d: d["model"]["vocab"].update(a=10**8), "but the id 100000000"),
        (lambda d: d["model"]["vocab"].update(a=d["model"]["vocab"]["b"]), "twice"),
        (lambda d: d["model"]["merges"].append(d["model"]["merges"][0]), "twice"),
        (lambda d: d["model"]["merges"].append(["zq", "a"]), "it has"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "with lstrip"),
        (lambda d: d["added_tokens"][0].update(content="a b"), "'a b', which has white space in it"),
        (lambda d: d["added_tokens"][0].update(content="<s><|end"), "which has the beginning of <|endoftext|> in it"),
        (
            lambda d: d["added_tokens"][3].update(id=700),
            "it has the id 700 for '<|im_start|>', but Hugging Face's tokenizers give it 303",
        ),
        (lambda d: d["added_tokens"][0].update(id=1), "it has the id 1 for '<|endoftext|>' and for another token"),
        (lambda d: d["added_tokens"][1].update(normalized=True), "looks for the added token '<s>>' before '<s>' (norm"),
        (
            lambda d: (d["added_tokens"][0].update(normalized=True), d.update(normalizer={"type": "NFC"})),
            "looked for only after normalizing (normalized)",
        ),
    ],
)  # fmt: skip
def test_what_we_cannot_do_is_refused_by_name(tmp_path, change, words):
    document = json.loads(of_hugging_face("gpt4", MARKS, 300).to_str())
    change(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert_refused(tmp_path / "tokenizer.json", words)


@pytest.mark.parametrize(
    ("processor", "refused"),
    [
        (processors.ByteLevel(trim_offsets=False), False),
        (processors.Sequence([processors.ByteLevel(trim_offsets=False)]), False),
        (processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)]), True),
        (processors.TemplateProcessing("$A $A", special_tokens=[]), True),
        (processors.TemplateProcessing("$A", "$A <s> $B", special_tokens=[("<s>", 1)]), False),
    ],
)
def test_a_post_processor_is_refused_if_it_adds_tokens(tmp_path, processor, refused):
    theirs = of_hugging_face("gpt2", (), 300)
    theirs.post_processor = processor
    theirs.save(str(tmp_path / "tokenizer.json"))
    if refused:
        assert_refused(tmp_path / "tokenizer.json", "it has the post_processor 'TemplateProcessing'")
    else:
        assert_same(Tokenizer.load(tmp_path), theirs, CORPUS)


def test_a_post_processor_is_refused_last_because_another_reason_would_remain(tmp_path):
    theirs = of_hugging_face("gpt2", (), 300)
    theirs.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    document = json.loads(theirs.to_str())
    document["model"]["byte_fallback"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert_refused(tmp_path, "it has byte_fallback")


def test_marks_of_gpt2_and_of_those_who_tuned_it_are_looked_for_together(tmp_path):
    """transformers 4 marks GPT-2's own end of a text as normalized, but not the special tokens that a user adds."""
    theirs = of_hugging_face("gpt2", ())
    theirs.add_special_tokens([AddedToken("<|endoftext|>", normalized=True, special=True)])
    theirs.add_special_tokens(["[PAD]", "<|user|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert_same(Tokenizer.load(tmp_path), theirs, "[PAD]<|endoftext|>[PAD <|user|>it<|endoftext|><|user|><|endoftext")


def test_a_normalizer_that_does_nothing_is_none(tmp_path):
    theirs = of_hugging_face("gpt2", (), 300)
    theirs.normalizer = normalizers.Sequence([])
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert_same(Tokenizer.load(tmp_path), theirs, CORPUS)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    assert_refused(tmp_path, "is a directory without tokenizer.json and without vocab.json and merges.txt")
