"""gpt/tokenizer/tokenizer.py: tokenizer.json is saved, loaded and refused."""

import json

import pytest

from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tests.tokenizer.samples import CORPUS, both_kinds, every_kind, trained


@every_kind
def test_saving_and_loading_keep_everything_and_leave_no_other_file(tmp_path, kind):
    ours = trained(kind, vocab_limit=5000)
    ours.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded, loaded.config, loaded.vocab_limit) == (ours, ours.config, 5000)
    assert loaded.encode(CORPUS) == ours.encode(CORPUS)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def assert_refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not exist"),
        (b"", "is not valid JSON"),
        (b'{"version": "1.0", ', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[]", "not a tokenizer that hipgpt can use|asks for what hipgpt does not do"),
        (b"{}", "not a tokenizer that hipgpt can use|asks for what hipgpt does not do"),
        (
            b'{"model": {"vocab": {}, "merges": [], "end_of_word_suffix": null}}',
            "not a tokenizer that hipgpt can use|asks for what hipgpt does not do",
        ),
    ],
)
def test_missing_and_broken_files_are_refused_in_one_line(tmp_path, data, words):
    if data is not None:
        (tmp_path / "tokenizer.json").write_bytes(data)
    assert_refused(tmp_path / "tokenizer.json", words)


def test_a_directory_is_refused(tmp_path):
    assert_refused(tmp_path, "is a directory")


@both_kinds
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["normalizer"], {"type": "Lowercase"}),
        (["pre_tokenizer"], {"type": "Whitespace"}),
        (["decoder"], None),
        (["added_tokens"], []),
        (["model", "byte_fallback"], True),
        (["model", "vocab", "a"], 7000),
        (["model", "vocab_limit"], 3),
        (["model", "vocab_limit"], "many"),
        (["model", "merges", 0], ["a", "nowhere"]),
        (["model", "merges", 0], ["a"]),
        (["model", "merges"], []),
        (["model", "vocab", "a"], True),
        (["model", "vocab_limit"], 2**31),
        (["model", "vocab_limit"], 400.0),
        (["truncation"], {"max_length": 5}),
        (["padding"], {"pad_id": 0}),
    ],
)
def test_a_file_that_would_give_other_ids_is_refused(tmp_path, kind, keys, value):
    path = tmp_path / "tokenizer.json"
    trained(kind).save(path)
    document = section = json.loads(path.read_bytes())
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    path.write_text(json.dumps(document))
    assert_refused(path, "not a tokenizer that hipgpt can use|asks for what hipgpt does not do")


@pytest.mark.parametrize(
    "merges",
    [
        [[2, -1], [1, 1], [1, -2], [-1, -1]],  # each of these numbers is the sum of two others
        [["a", 1]],
        [["a", ""]],
        [["a", "b", "c"]],
        ["a b c"],
        [5],
    ],
)
def test_merges_that_are_no_pairs_of_texts_are_refused(tmp_path, merges):
    path = tmp_path / "tokenizer.json"
    trained("byte").save(path)
    document = json.loads(path.read_bytes())
    document["model"]["merges"] = merges
    path.write_text(json.dumps(document))
    assert_refused(path, "not a tokenizer that hipgpt can use")
